/* Forwards packets of one-way connections: layer 3 stays as it is (see tunnel.h). */

#ifdef IPIP

static __always_inline bool is_outer_v6_FAM(struct flow_FAM *flow)
{
	return !(flow->flags & FLOW_FLAG_OTHER_FAMILY) == IS_V6_FAM;
}

/* Address the FIB lookup for the outer packet. Returns the bytes of the outer header; 0: this node has no address for it. */
static __always_inline u32 fill_outer_params_FAM(struct bpf_fib_lookup *fib_params, struct packet *packet,
						 struct flow_FAM *flow)
{
	bool is_v6 = is_outer_v6_FAM(flow);
	struct outer outer = {};
	__be32 *source;

	describe_inner_FAM(packet, &outer);
	source = find_outer_source(is_v6);
	if (!source)
		return 0;
	fib_params->sport = fib_params->dport = 0;
	fib_params->l4_protocol = outer.protocol;
	if (is_v6) {
		fill_fib_addresses_v6(fib_params, (struct addr_v6 *)source, outer_destination_v6_FAM(flow));
		fib_params->flowinfo = htonl(outer.traffic_class << 20);
		return sizeof(struct ipv6hdr);
	}
	fill_fib_addresses_v4(fib_params, (struct addr_v4 *)source, outer_destination_v4_FAM(flow));
	fib_params->tos = outer.traffic_class;
	return sizeof(struct iphdr);
}

/* Put the outer header before the packet. The caller writes the MACs. */
static __always_inline u32 encapsulate_FAM(struct packet *packet, struct flow_FAM *flow)
{
	bool is_v6 = is_outer_v6_FAM(flow);
	struct outer outer = { .inner_bytes = packet->ip_bytes };
	__be32 *source = find_outer_source(is_v6);
	struct ethhdr *ethernet;

	if (!source)
		return COUNTER_DROP_NO_TUNNEL_SOURCE;
	describe_inner_FAM(packet, &outer);
	if (!is_v6) {
		ethernet = prepend(packet, sizeof(struct iphdr));
		if (!ethernet)
			return COUNTER_DROP_NO_HEADROOM;
		ethernet->h_proto = htons(ETH_P_IP);
		write_outer_v4((void *)(ethernet + 1), &outer, source, outer_destination_v4_FAM(flow));
		return CONTINUE;
	}
	if (!outer.flow_label) /* the same for all packets of a client, fragments included (RFC 6438) */
		outer.flow_label = address_hash_FAM(&addresses_FAM(packet)[0], 0) & FLOW_LABEL;
	ethernet = prepend(packet, sizeof(struct ipv6hdr));
	if (!ethernet)
		return COUNTER_DROP_NO_HEADROOM;
	ethernet->h_proto = htons(ETH_P_IPV6);
	write_outer_v6((void *)(ethernet + 1), &outer, source, outer_destination_v6_FAM(flow));
	return CONTINUE;
}

#endif
