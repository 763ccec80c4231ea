/* The egress interface and next hop: from the flow while its generation is the global one, else from the kernel's FIB.
 *
 * CONTINUE: the flow's MACs, interface and MTU are valid. pass_unresolved: the kernel has to resolve the neighbour.
 * pass_too_big: the packet is longer than packet->mtu. Otherwise a drop. Of a tunnel, the MTU is that of inner packets.
 */
static __always_inline u32 lookup_fib_FAM(struct packet *packet, struct flow_FAM *flow, u32 generation)
{
	u32 overhead = 0;
	struct bpf_fib_lookup fib_params = {
		.l4_protocol = packet->protocol,
		.sport = flow->source_port,
		.dport = flow->destination_port,
		.ifindex = ingress_of(packet),
	};

	fill_fib_params_FAM(&fib_params, packet, flow);
#ifdef IPIP
	if (is_tunnelled(flow->flags)) {
		overhead = fill_outer_params_FAM(&fib_params, packet, flow);
		if (!overhead)
			return COUNTER_DROP_NO_TUNNEL_SOURCE;
	}
#endif
	fib_params.tot_len = packet->ip_bytes + overhead < 0xffff ? packet->ip_bytes + overhead : 0xffff;
	switch (bpf_fib_lookup(packet->context, &fib_params, sizeof(fib_params), 0)) {
	case BPF_FIB_LKUP_RET_SUCCESS:
		break;
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		return COUNTER_PASS_UNRESOLVED;
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		packet->mtu = overhead ? inner_mtu(fib_params.mtu_result, overhead, MIN_MTU_FAM) : fib_params.mtu_result;
		return COUNTER_PASS_TOO_BIG;
	default:
		return COUNTER_DROP_NO_ROUTE;
	}
	__builtin_memcpy(flow->destination_mac, fib_params.dmac, sizeof(flow->destination_mac));
	__builtin_memcpy(flow->source_mac, fib_params.smac, sizeof(flow->source_mac));
	flow->interface = fib_params.ifindex;
	flow->mtu = fib_params.mtu_result - overhead;
	flow->next_hop_generation = generation;
	return CONTINUE;
}

static __always_inline u32 find_next_hop_FAM(struct packet *packet, struct flow_FAM *flow)
{
	u32 zero = 0;
	struct globals *global = globals.lookup(&zero);
	u32 generation;

	if (!global)
		return COUNTER_DROP_INTERNAL;
	generation = global->next_hop_generation;
	if (generation && flow->next_hop_generation == generation && packet->ip_bytes <= flow->mtu)
		return CONTINUE;
	return lookup_fib_FAM(packet, flow, generation);
}
