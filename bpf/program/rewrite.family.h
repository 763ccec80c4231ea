/* Forwards a packet of a known flow: hop limit, next hop, rewrite. */

/* The lengths were checked by parse_transport; the verifier needs the check repeated. */
static __always_inline void rewrite_transport_FAM(struct packet *packet, struct flow_FAM *flow)
{
	struct tcphdr *tcp = packet->transport;
	struct udphdr *udp = packet->transport;

	if (packet->protocol == IPPROTO_TCP && (void *)(tcp + 1) <= packet->end)
		tcp->check = changed_transport_checksum(tcp->check, flow->l4_delta, IPPROTO_TCP);
	else
		udp->check = changed_transport_checksum(udp->check, flow->l4_delta, IPPROTO_UDP);
	copy_ports(packet->transport, &flow->source_port);
}

static __always_inline void write_macs_FAM(struct packet *packet, struct flow_FAM *flow)
{
	copy_macs(packet->ethernet->h_dest, flow->destination_mac);
	packet->egress_ifindex = flow->interface;
}

/* Forward the client's packet of a one-way connection as it is: dsr changes its MACs, ipip wraps it. Never through the kernel: for it the destination
 * of dsr is local, and an outer source of its own is a martian. So what is too long is reported to the sender, which then
 * sends less, with or without DF (Linux lowers its path MTU in both cases); nothing fragments it here. */
static __always_inline u32 forward_whole_FAM(struct packet *packet, struct flow_FAM *flow)
{
	u32 verdict;

	if (!hop_limit_FAM(packet))
		return COUNTER_DROP_TTL_EXPIRED;
	verdict = find_next_hop_FAM(packet, flow);
	if (verdict == COUNTER_PASS_UNRESOLVED)
		return COUNTER_DROP_UNRESOLVED;
	if (verdict == COUNTER_PASS_TOO_BIG)
		return COUNTER_DROP_TOO_BIG;
	if (verdict != CONTINUE)
		return verdict;
#ifdef IPIP
	if (is_tunnelled(flow->flags)) {
		verdict = encapsulate_FAM(packet, flow);
		if (verdict != CONTINUE)
			return verdict;
	}
#endif
	count_traffic(packet, flow->farm, flow->backend, true);
	write_macs_FAM(packet, flow);
	return packet->egress_ifindex == ingress_of(packet) ? COUNTER_FORWARD_TX : COUNTER_FORWARD_REDIRECT;
}

/* The kernel decrements the TTL of a packet that is passed to it for forwarding. */
static __always_inline u32 forward_FAM(struct packet *packet, struct flow_FAM *flow, bool has_ports)
{
	u32 verdict;

	if (is_one_way(flow->flags))
		return forward_whole_FAM(packet, flow);
	if (hop_limit_FAM(packet) <= 1)
		return COUNTER_DROP_TTL_EXPIRED;
	verdict = find_next_hop_FAM(packet, flow);
	if (is_drop(verdict))
		return verdict;
	if (verdict == COUNTER_PASS_TOO_BIG && !may_be_fragmented_FAM(packet))
		return COUNTER_DROP_TOO_BIG;
	rewrite_network_FAM(packet, flow, verdict == CONTINUE);
	if (has_ports)
		rewrite_transport_FAM(packet, flow);
	count_traffic(packet, flow->farm, flow->backend, flow->flags & FLOW_FLAG_FORWARD);
	if (verdict != CONTINUE)
		return verdict;
	write_macs_FAM(packet, flow);
	return packet->egress_ifindex == ingress_of(packet) ? COUNTER_FORWARD_TX : COUNTER_FORWARD_REDIRECT;
}

/* Forward a packet with ports by its flow. */
static __always_inline u32 forward_flow_FAM(struct packet *packet, struct flow_key_FAM *key, struct flow_FAM *flow)
{
	touch_FAM(packet, key, flow);
#ifdef TOA
	if (flow->flags & FLOW_FLAG_TOA) {
		u32 verdict = handle_toa_FAM(packet, key, flow);

		if (verdict != CONTINUE)
			return verdict;
	}
#endif
	if (packet->fragment)
		remember_fragments_FAM(packet, key, flow);
	return forward_FAM(packet, flow, true);
}
