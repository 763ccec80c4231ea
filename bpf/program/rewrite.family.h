/* A packet of a known flow: hop limit, way out, rewrite. The last step before the exit. */

/* The lengths were checked by parse_transport; the verifier has to see it again. */
static __always_inline void rewrite_transport_FAM(struct packet *packet, struct flow_FAM *flow)
{
	struct ports *ports = packet->transport;
	struct tcphdr *tcp = packet->transport;
	struct udphdr *udp = packet->transport;

	if (packet->protocol == IPPROTO_TCP && (void *)(tcp + 1) <= packet->end)
		tcp->check = changed_transport_checksum(tcp->check, flow->l4_delta, IPPROTO_TCP);
	else
		udp->check = changed_transport_checksum(udp->check, flow->l4_delta, IPPROTO_UDP);
	ports->source = flow->source_port;
	ports->destination = flow->destination_port;
}

static __always_inline void write_macs_FAM(struct packet *packet, struct flow_FAM *flow)
{
	__builtin_memcpy(packet->ethernet->h_dest, flow->destination_mac, sizeof(flow->destination_mac));
	__builtin_memcpy(packet->ethernet->h_source, flow->source_mac, sizeof(flow->source_mac));
	packet->interface = flow->interface;
}

/* A packet that goes to the kernel keeps its hop: the kernel takes it off when it forwards. */
static __always_inline u32 forward_FAM(struct packet *packet, struct flow_FAM *flow)
{
	u32 mtu = 0, verdict;

	packet->farm = flow->farm;
	if (hops_left_FAM(packet) <= 1)
		return COUNTER_DROP_TTL_EXPIRED;
	verdict = find_next_hop_FAM(packet, flow, &mtu);
	if (verdict >= FIRST_DROP && verdict != GO_ON)
		return verdict;
	if (verdict == COUNTER_PASS_TOO_BIG && !may_be_fragmented_FAM(packet))
		return answer_too_big_FAM(packet, mtu);
	rewrite_network_FAM(packet, flow, verdict == GO_ON);
	rewrite_transport_FAM(packet, flow);
	count_traffic(packet, flow->farm, flow->backend, flow->flags & FLOW_FLAG_FORWARD);
	if (verdict != GO_ON)
		return verdict;
	write_macs_FAM(packet, flow);
	return packet->interface == packet->context->ingress_ifindex ? COUNTER_FORWARD_TX : COUNTER_FORWARD_REDIRECT;
}
