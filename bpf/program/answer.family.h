/* Answers the sender of a packet that is dropped, so that it does not wait: with a TCP reset, or with an ICMP error.
 *
 * A mid-stream segment without a flow, and a new connection that no backend can take, get a reset (RFC 9293 3.5.2); datagrams
 * get "port unreachable", as from a host without the service. An expired hop limit, a missing route and a packet longer than
 * the MTU get the ICMP error of a router (RFC 1812 5.3.1, RFC 4443 3.3). Never from a fenced node, and never in answer to a
 * reset, an ICMP error, a broadcast or an impossible source. A sender that gets no answer retransmits.
 */

/* A TCP segment without data, before its addresses are known (RFC 9293 3.10.7.1). False: not in the frame. */
static __always_inline bool prepare_reset_FAM(struct packet *packet, struct tcphdr *reset)
{
	struct tcphdr *tcp = packet->transport;
	u32 length;

	if (!tcp || (void *)(tcp + 1) > packet->end)
		return false;
	*reset = (struct tcphdr){ .source = tcp->dest, .dest = tcp->source, .doff = sizeof(*reset) / 4, .rst = 1 };
	if (packet->tcp_flags & TCP_ACK) {
		reset->seq = tcp->ack_seq;
		return true;
	}
	length = packet->ip_bytes - (packet->transport - packet->network) - tcp->doff * 4;
	length += !!(packet->tcp_flags & TCP_SYN) + !!(packet->tcp_flags & TCP_FIN);
	reset->ack = 1;
	reset->ack_seq = htonl(ntohl(tcp->seq) + length);
	return true;
}

static __always_inline bool send_reset_FAM(struct packet *packet, struct flow_key_FAM *key)
{
	const u32 kept = sizeof(struct ethhdr) + IP_HEADER_BYTES_FAM + sizeof(struct tcphdr);
	struct xdp_md *context = packet->context;
	struct tcphdr reset, *tcp;
	struct ethhdr *ethernet;

	if (!prepare_reset_FAM(packet, &reset))
		return false;
	if (bpf_xdp_adjust_tail(context, (int)kept - (int)packet->frame_bytes))
		return false;
	ethernet = (void *)(long)context->data;
	if ((void *)ethernet + kept > (void *)(long)context->data_end)
		return false;
	write_ip_FAM((void *)(ethernet + 1), &key->destination, &key->source, IPPROTO_TCP, sizeof(*tcp));
	reset.check = ~fold(sum_words((__be32 *)&reset, sizeof(reset) / 4) + sum_words(key->source.word, WORDS_FAM) +
			    sum_words(key->destination.word, WORDS_FAM) + htons(IPPROTO_TCP) + htons(sizeof(reset)));
	tcp = (void *)(ethernet + 1) + IP_HEADER_BYTES_FAM;
	*tcp = reset;
	return_frame(packet, ethernet, ethernet);
	return true;
}

/* An ICMP error that quotes the first `quoted` bytes of the packet, from `source` to the sender of the packet. */
static __always_inline bool send_error_FAM(struct packet *packet, struct flow_key_FAM *key, struct addr_FAM *source,
					   struct icmp_header *error, const u32 quoted)
{
	const u32 kept = sizeof(struct ethhdr) + quoted, more = IP_HEADER_BYTES_FAM + sizeof(struct icmp_header);
	struct xdp_md *context = packet->context;
	struct ethhdr *ethernet, *original;
	struct icmp_header *icmp;

	if (bpf_xdp_adjust_tail(context, (int)kept - (int)packet->frame_bytes) || bpf_xdp_adjust_head(context, -(int)more))
		return false;
	ethernet = (void *)(long)context->data;
	original = (void *)ethernet + more;
	if ((void *)original + kept > (void *)(long)context->data_end)
		return false;
	return_frame(packet, original, ethernet);
	write_ip_FAM((void *)(ethernet + 1), source, &key->source, ICMP_PROTOCOL_FAM, sizeof(*icmp) + quoted);
	icmp = (void *)(ethernet + 1) + IP_HEADER_BYTES_FAM;
	*icmp = *error;
	icmp->checksum = icmp_checksum_FAM(icmp, sizeof(*icmp) + quoted, source, &key->source);
	return true;
}

/* The node's own address towards the sender (RFC 1812 4.3.2.4), with which traceroute shows the node. Linux before 6.7 cannot
 * say; then, as if there were none, the address that the packet was sent to. */
static __always_inline void find_own_address_FAM(struct packet *packet, struct flow_key_FAM *key, struct addr_FAM *source)
{
	struct bpf_fib_lookup fib_params = { .ifindex = ingress_of(packet) };

	fill_fib_addresses_FAM(&fib_params, &key->destination, &key->source);
	if (bpf_fib_lookup(packet->context, &fib_params, sizeof(fib_params), FIB_SKIP_NEIGHBOUR | FIB_SOURCE) ==
	    BPF_FIB_LKUP_RET_SUCCESS)
		read_fib_source_FAM(&fib_params, source);
}

/* Answers a packet that was dropped with `verdict`, if it deserves it. Returns the verdict to count. */
static __always_inline u32 answer_FAM(struct packet *packet, struct flow_key_FAM *key, u32 verdict)
{
	u32 answer = choose_answer(packet, verdict);
	struct icmp_header error = {};
	struct addr_FAM source;
	bool sent;

	if (answer == ANSWER_NOTHING || packet->ethernet->h_dest[0] & 1 || is_impossible_FAM(&key->source) || is_fenced(packet))
		return verdict;
	if (!may_send(packet, answer))
		return verdict;
	if (answer == ANSWER_RESET) {
		sent = send_reset_FAM(packet, key);
	} else {
		source = key->destination;
		if (is_from_router(answer))
			find_own_address_FAM(packet, key, &source);
		describe_error_FAM(&error, answer, packet->mtu);
		if (packet->ip_bytes >= QUOTE_BYTES_FAM)
			sent = send_error_FAM(packet, key, &source, &error, QUOTE_BYTES_FAM);
		else
			sent = send_error_FAM(packet, key, &source, &error, SHORT_QUOTE_BYTES_FAM);
	}
	if (!sent)
		return verdict;
	if (answer == ANSWER_TOO_BIG)
		return COUNTER_FORWARD_TOO_BIG;
	count(packet, event_of(answer));
	return verdict;
}
