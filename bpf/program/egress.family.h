/* The way out: MACs and interface from the flow while its generation is the global one, else asked of the kernel's routes.
 *
 * GO_ON: the flow's MACs, interface and MTU are good. pass_unresolved: the kernel has to resolve the neighbour.
 * pass_too_big: longer than `*mtu`. Otherwise a drop.
 */
static __always_inline u32 ask_route_FAM(struct packet *packet, struct flow_FAM *flow, u32 generation, u32 *mtu)
{
	struct bpf_fib_lookup question = {
		.l4_protocol = packet->protocol,
		.sport = flow->source_port,
		.dport = flow->destination_port,
		.tot_len = packet->ip_bytes < 0xffff ? packet->ip_bytes : 0xffff,
		.ifindex = packet->context->ingress_ifindex,
	};

	fill_route_question_FAM(&question, packet, flow);
	switch (bpf_fib_lookup(packet->context, &question, sizeof(question), 0)) {
	case BPF_FIB_LKUP_RET_SUCCESS:
		break;
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		return COUNTER_PASS_UNRESOLVED;
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		*mtu = question.mtu_result;
		return COUNTER_PASS_TOO_BIG;
	default:
		return COUNTER_DROP_NO_ROUTE;
	}
	__builtin_memcpy(flow->destination_mac, question.dmac, sizeof(flow->destination_mac));
	__builtin_memcpy(flow->source_mac, question.smac, sizeof(flow->source_mac));
	flow->interface = question.ifindex;
	flow->mtu = question.mtu_result;
	flow->next_hop_generation = generation;
	return GO_ON;
}

static __always_inline u32 find_next_hop_FAM(struct packet *packet, struct flow_FAM *flow, u32 *mtu)
{
	u32 zero = 0;
	struct globals *global = globals.lookup(&zero);
	u32 generation;

	if (!global)
		return COUNTER_DROP_INTERNAL;
	generation = global->next_hop_generation;
	if (generation && flow->next_hop_generation == generation && packet->ip_bytes <= flow->mtu)
		return GO_ON;
	return ask_route_FAM(packet, flow, generation, mtu);
}
