/* ICMP errors about a flow: translated and forwarded to the sender of the packet they quote (RFC 5508). */

/* Replace ports and checksum in the quoted TCP or UDP header. Returns the delta for the ICMP checksum. An error may quote as
 * few as 8 bytes of that header, which include the checksum of UDP but not of TCP. */
static __always_inline u32 restore_quoted_ports_FAM(struct packet *packet, struct ports *ports, struct flow_FAM *flow,
						    u8 protocol)
{
	u32 before = ports->source + ports->destination;
	u32 change = difference(before, flow->source_port + flow->destination_port);
	u16 *check = (void *)ports + (protocol == IPPROTO_UDP ? 6 : 16);
	u16 old;

	ports->source = flow->destination_port;
	ports->destination = flow->source_port;
	if ((void *)(check + 1) > packet->end || (void *)(check + 1) - packet->network > packet->ip_bytes)
		return change;
	old = *check;
	*check = changed_transport_checksum(old, flow->l4_delta, protocol);
	return fold(change + difference(old, *check));
}

/* The flow that the error belongs to, opposite to that of the packet it quotes; `key` becomes its key. */
static __always_inline struct flow_FAM *find_quoted_flow_FAM(struct packet *packet, struct flow_key_FAM *key,
							     struct ports **quoted)
{
	struct ports *ports = parse_quoted_FAM(packet, packet->transport + sizeof(struct icmp_header), key);

	if (!ports || (void *)ports + 8 > packet->end || (void *)ports + 8 - packet->network > packet->ip_bytes)
		return NULL;
	if (key->protocol != IPPROTO_TCP && key->protocol != IPPROTO_UDP)
		return NULL;
	key->source_port = ports->destination;
	key->destination_port = ports->source;
	*quoted = ports;
	return find_flow_FAM(key);
}

/* CONTINUE: the error is about no flow of ours. Otherwise the verdict on the translated error. */
static __always_inline u32 translate_error_FAM(struct packet *packet, struct flow_key_FAM *outer)
{
	struct flow_key_FAM key = {};
	struct ports *ports = NULL;
	struct icmp_header *icmp = packet->transport;
	struct flow_FAM *flow = find_quoted_flow_FAM(packet, &key, &ports);
	u32 change, verdict;

	if (!flow || !ports || !is_same_address_FAM(&outer->destination, &key.destination))
		return CONTINUE;
	packet->farm = flow->farm;
	if (is_fenced(packet))
		return COUNTER_DROP_FENCED;
	if (hop_limit_FAM(packet) <= 1)
		return COUNTER_DROP_TTL_EXPIRED;
	verdict = find_next_hop_FAM(packet, flow);
	if (verdict == COUNTER_PASS_TOO_BIG)
		return COUNTER_DROP_TOO_BIG; /* no ICMP error in response to an ICMP error (RFC 1122) */
	if (is_drop(verdict))
		return verdict;
	change = restore_quoted_ports_FAM(packet, ports, flow, key.protocol);
	change += restore_quoted_FAM(packet->transport + sizeof(struct icmp_header), flow);
	change += rewrite_outer_FAM(packet, flow, verdict == CONTINUE);
	icmp->checksum = changed_checksum(icmp->checksum, fold(change));
	if (verdict != CONTINUE)
		return verdict;
	write_macs_FAM(packet, flow);
	return COUNTER_FORWARD_ICMP_ERROR;
}
