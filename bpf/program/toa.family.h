/* TOA: the client's address and port as a TCP option, for servers behind mode snat. Compiled only if a farm wants it.
 *
 * The option is put on the client's first segment with data and on its retransmissions, until the server has acknowledged it.
 * Kind 254 (RFC 4727: for experiments), the port, and the address: 8 bytes for IPv4, 20 for IPv6, as the kernel modules read
 * it. It is put in front of the segment's other options, so that a fixed number of bytes moves. A segment that has no space
 * for it, or would exceed the MTU, passes without it.
 */
#ifdef TOA

struct toa_option_FAM {
	u8 kind;
	u8 bytes;
	__be16 port;
	struct addr_FAM address;
} __attribute__((packed));
_Static_assert(sizeof(struct toa_option_FAM) % 4 == 0, "the data offset counts words");

/* The sequence number of the first data of a client, until it is acknowledged. */
BPF_TABLE_PINNED("lru_hash", struct flow_key_FAM, u32, toa_FAM, MAX_TOA, PINS "/toa_FAM");

/* Must this flow's packets be looked at? */
static __always_inline bool is_toa_pending_FAM(struct flow_FAM *flow)
{
	const u8 done = flow->flags & FLOW_FLAG_FORWARD ? FLOW_STATE_TOA_DONE : FLOW_STATE_TOA_DONE | FLOW_STATE_REPLICATED;

	return flow->flags & FLOW_FLAG_TOA && !(flow->state & done);
}

static __always_inline bool is_first_data_FAM(struct packet *packet, struct flow_key_FAM *key)
{
	struct tcphdr *tcp = packet->transport;
	u32 sequence, *first;

	if ((void *)(tcp + 1) > packet->end || packet->fragment || packet->tcp_flags & (TCP_SYN | TCP_RST) ||
	    !segment_bytes(packet))
		return false;
	sequence = ntohl(tcp->seq);
	first = toa_FAM.lookup(key);
	if (!first) {
		toa_FAM.update(key, &sequence);
		return true;
	}
	if ((s32)(sequence - *first) < 0)
		*first = sequence; /* an earlier segment has overtaken it, or was lost before it came here */
	return sequence == *first;
}

/* Move the headers forward and write the option behind the fixed TCP header. event_toa_inserted, event_toa_skipped if there is
 * no space; or a drop, which cannot happen. */
static __always_inline u32 insert_toa_FAM(struct packet *packet, struct flow_key_FAM *key)
{
	const u32 kept = sizeof(struct ethhdr) + IP_HEADER_BYTES_FAM + sizeof(struct tcphdr);
	const u32 more = sizeof(struct toa_option_FAM);
	struct xdp_md *context = packet->context;
	struct tcphdr *tcp = packet->transport;
	struct toa_option_FAM *option;
	volatile u16 *to, *from;
	bool moved;

	if (packet->transport - packet->network != IP_HEADER_BYTES_FAM || (void *)(tcp + 1) > packet->end ||
	    tcp->doff + more / 4 > 15)
		return COUNTER_EVENT_TOA_SKIPPED;
	moved = !bpf_xdp_adjust_head(context, -(int)more);
	packet->ethernet = (void *)(long)context->data;
	packet->end = (void *)(long)context->data_end;
	packet->network = packet->ethernet + 1;
	packet->transport = packet->network + IP_HEADER_BYTES_FAM;
	if ((void *)packet->ethernet + kept > packet->end)
		return COUNTER_DROP_INTERNAL;
	if (!moved)
		return COUNTER_EVENT_TOA_SKIPPED;
	if ((void *)packet->ethernet + kept + more > packet->end)
		return COUNTER_DROP_INTERNAL;
	to = (void *)packet->ethernet;
	from = (void *)packet->ethernet + more;
#pragma unroll
	for (u32 i = 0; i < kept / 2; i++)
		to[i] = from[i];
	tcp = packet->transport;
	option = (void *)(tcp + 1);
	*option = (struct toa_option_FAM){ .kind = TOA_KIND, .bytes = more, .port = key->source_port, .address = key->source };
	tcp->doff += more / 4;
	tcp->check = changed_checksum(tcp->check,
				      fold(htons(TOA_KIND << 8 | more) + option->port + sum_words(key->source.word, WORDS_FAM) +
					   htons(more) + htons(more / 4 << 12)));
	packet->ip_bytes += more;
	lengthen_FAM(packet, more);
	return COUNTER_EVENT_TOA_INSERTED;
}

/* May the segment leave with the option? */
static __always_inline bool fits_toa_FAM(struct packet *packet, struct flow_FAM *flow)
{
	bool fits;

	packet->ip_bytes += sizeof(struct toa_option_FAM);
	fits = find_next_hop_FAM(packet, flow) == CONTINUE && hop_limit_FAM(packet) > 1;
	packet->ip_bytes -= sizeof(struct toa_option_FAM);
	return fits;
}

static __always_inline void finish_toa_FAM(struct flow_key_FAM *key, struct flow_FAM *forward)
{
	forward->state |= FLOW_STATE_TOA_DONE;
	toa_FAM.delete(key);
}

/* A packet from the client. Of a connection that the peer opened, it is not known which data was first: one segment has it. */
static __always_inline u32 handle_toa_client_FAM(struct packet *packet, struct flow_key_FAM *key, struct flow_FAM *flow)
{
	struct flow_key_FAM *reply_key;
	struct flow_FAM *reply;
	u32 event;

	if (is_syn(packet)) {
		flow->state &= ~FLOW_STATE_TOA_DONE; /* of the tuple's last connection */
		reply_key = other_key_FAM(flow, key->protocol);
		reply = reply_key ? find_flow_FAM(reply_key) : NULL;
		if (reply)
			reply->state &= ~FLOW_STATE_TOA_DONE;
		toa_FAM.delete(key);
		return CONTINUE;
	}
	if (!is_toa_pending_FAM(flow) || !is_first_data_FAM(packet, key))
		return CONTINUE;
	event = fits_toa_FAM(packet, flow) ? insert_toa_FAM(packet, key) : COUNTER_EVENT_TOA_SKIPPED;
	if (is_drop(event))
		return event;
	count(packet, event);
	if (flow->state & FLOW_STATE_REPLICATED)
		finish_toa_FAM(key, flow);
	return CONTINUE;
}

/* A packet to the client: has the server acknowledged the first data? */
static __always_inline void handle_toa_server_FAM(struct packet *packet, struct flow_key_FAM *key, struct flow_FAM *flow)
{
	struct tcphdr *tcp = packet->transport;
	struct flow_key_FAM *client_key;
	struct flow_FAM *forward;
	u32 *first;

	if (!is_toa_pending_FAM(flow) || !(packet->tcp_flags & TCP_ACK) || (void *)(tcp + 1) > packet->end)
		return;
	client_key = other_key_FAM(flow, key->protocol);
	first = client_key ? toa_FAM.lookup(client_key) : NULL;
	if (!first || (s32)(ntohl(tcp->ack_seq) - *first) <= 0)
		return;
	flow->state |= FLOW_STATE_TOA_DONE;
	forward = find_flow_FAM(client_key);
	if (forward)
		finish_toa_FAM(client_key, forward);
}

/* CONTINUE, or a drop. Changes nothing of a packet that gets no option. */
static __always_inline u32 handle_toa_FAM(struct packet *packet, struct flow_key_FAM *key, struct flow_FAM *flow)
{
	if (flow->flags & FLOW_FLAG_FORWARD)
		return handle_toa_client_FAM(packet, key, flow);
	handle_toa_server_FAM(packet, key, flow);
	return CONTINUE;
}
#endif
