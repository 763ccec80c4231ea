/* ICMP errors: those about a flow, translated and sent to the end that caused them (RFC 5508), and our own "too big". */

/* Replace ports and checksum in what the error quotes of a TCP or UDP header; the delta for the ICMP checksum.
 * Only 8 bytes need be there, which hold UDP's checksum but not TCP's. */
static __always_inline u32 restore_quoted_ports_FAM(struct packet *packet, struct ports *ports, struct flow_FAM *flow,
						    u8 protocol)
{
	u32 before = ports->source + ports->destination;
	u32 change = difference(before, flow->source_port + flow->destination_port);
	u16 *check = (void *)ports + (protocol == IPPROTO_UDP ? 6 : 16);
	u16 was;

	ports->source = flow->destination_port;
	ports->destination = flow->source_port;
	if ((void *)(check + 1) > packet->end || (void *)(check + 1) - packet->network > packet->ip_bytes)
		return change;
	was = *check;
	*check = changed_transport_checksum(was, flow->l4_delta, protocol);
	return fold(change + difference(was, *check));
}

/* The flow whose packet is quoted; `key` becomes the tuple of the opposite direction, which the error itself takes. */
static __always_inline struct flow_FAM *find_quoted_flow_FAM(struct packet *packet, struct flow_key_FAM *key,
							     struct ports **where)
{
	struct ports *ports = parse_quoted_FAM(packet, packet->transport + sizeof(struct icmp_header), key);

	if (!ports || (void *)ports + 8 > packet->end || (void *)ports + 8 - packet->network > packet->ip_bytes)
		return NULL;
	if (key->protocol != IPPROTO_TCP && key->protocol != IPPROTO_UDP)
		return NULL;
	key->source_port = ports->destination;
	key->destination_port = ports->source;
	*where = ports;
	return find_flow_FAM(key);
}

/* GO_ON: about no flow of ours. Otherwise the verdict of the translated error. */
static __always_inline u32 translate_error_FAM(struct packet *packet, struct flow_key_FAM *outer)
{
	struct flow_key_FAM key = {};
	struct ports *ports = NULL;
	struct icmp_header *icmp = packet->transport;
	struct flow_FAM *flow = find_quoted_flow_FAM(packet, &key, &ports);
	u32 change, verdict, mtu = 0;

	if (!flow || !ports || !is_same_address_FAM(&outer->destination, &key.destination))
		return GO_ON;
	packet->farm = flow->farm;
	if (is_fenced(packet))
		return COUNTER_DROP_FENCED;
	if (hops_left_FAM(packet) <= 1)
		return COUNTER_DROP_TTL_EXPIRED;
	verdict = find_next_hop_FAM(packet, flow, &mtu);
	if (verdict == COUNTER_PASS_TOO_BIG)
		return COUNTER_DROP_TOO_BIG; /* no error about an error (RFC 1122) */
	if (verdict >= FIRST_DROP && verdict != GO_ON)
		return verdict;
	change = restore_quoted_ports_FAM(packet, ports, flow, key.protocol);
	change += restore_quoted_FAM(packet->transport + sizeof(struct icmp_header), flow);
	change += rewrite_outer_FAM(packet, flow, verdict == GO_ON);
	icmp->checksum = changed_checksum(icmp->checksum, fold(change));
	if (verdict != GO_ON)
		return verdict;
	write_macs_FAM(packet, flow);
	return COUNTER_FORWARD_ICMP_ERROR;
}
