/* An IP packet: find its flow or VIP, check the fence, act. Each handler calls the fence once, and changes nothing before. */

/* --- packets without a flow -------------------------------------------------------------------------------- */

/* `verdict` if `destination` is a VIP; packets for other addresses belong to the kernel.
 *
 * Except one that the program does not understand and that may be a neighbour solicitation for a VIP.
 */
static __always_inline u32 handle_other_FAM(struct packet *packet, struct addr_FAM *destination, u32 verdict)
{
	struct vip *vip = vips_FAM.lookup((struct vip_key_FAM *)destination);
	u32 fenced;

	if (!vip && verdict == COUNTER_DROP_IPV6_EXTENSION && is_link_multicast_FAM(destination) && is_fenced(packet))
		return COUNTER_DROP_FENCED_NEIGHBOUR;
	if (!vip)
		return COUNTER_PASS_NOT_OURS;
	fenced = fence_FAM(packet, destination);
	if (fenced != CONTINUE)
		return fenced;
	if ((verdict == COUNTER_DROP_PROTOCOL || verdict == COUNTER_DROP_FRAGMENT) && vip->flags & VIP_FLAG_OPEN)
		return COUNTER_PASS_VIP_OPEN;
	return verdict;
}

static __always_inline u32 handle_icmp_FAM(struct packet *packet, struct flow_key_FAM *key)
{
	u8 type = *(u8 *)packet->transport;
	u32 verdict = is_icmp_error_FAM(type) && !packet->fragment ? translate_error_FAM(packet, key)
								   : handle_solicitation_FAM(packet);

	if (verdict != CONTINUE)
		return verdict;
	return handle_other_FAM(packet, &key->destination, COUNTER_PASS_VIP_ICMP);
}

/* --- TCP and UDP ------------------------------------------------------------------------------------------- */

/* A client reuses the tuple of a connection that is closed, or whose backend no longer answers. */
static __always_inline bool is_reused_FAM(struct packet *packet, struct flow_FAM *flow)
{
	return is_syn(packet) && flow->flags & FLOW_FLAG_FORWARD && (is_closed(flow->state) || is_unavailable(flow->backend));
}

/* CONTINUE: the packet has a flow, or is for a VIP. */
static __always_inline u32 find_FAM(struct packet *packet, struct flow_key_FAM *key, struct match_FAM *match)
{
	struct flow_FAM *flow = flows_FAM.lookup(key);

	if (flow && !is_reused_FAM(packet, flow)) {
		packet->established = true;
		packet->farm = flow->farm;
		observe_flow_FAM(flow);
		match->flow = flow;
		return CONTINUE;
	}
	match->ended = flow;
	flow = embryonic_FAM.lookup(key);
	if (flow && !(is_syn(packet) && flow->flags & FLOW_FLAG_FORWARD && is_closed(flow->state)))
		match->flow = flow;
	if (match->ended) {
		packet->farm = match->ended->farm;
		observe_flow_FAM(match->ended);
	} else if (match->flow) {
		packet->farm = match->flow->farm;
		observe_flow_FAM(match->flow);
	} else {
		match->vip = vips_FAM.lookup((struct vip_key_FAM *)&key->destination);
	}
	return match->ended || match->flow || match->vip ? CONTINUE : COUNTER_PASS_NOT_OURS;
}

/* Open a connection on the listener it is for. Returns only with a verdict: the rest is done by the program that opens it. */
static __always_inline u32 accept_FAM(struct packet *packet, struct flow_key_FAM *key, struct match_FAM *match)
{
	struct vip *vip = match->vip;
	struct service *service;
	u32 verdict;

	if (!vip)
		vip = vips_FAM.lookup((struct vip_key_FAM *)&key->destination);
	if (!vip)
		return COUNTER_PASS_NOT_OURS;
	service = find_service_FAM(key, vip);
	if (!service && vip->flags & VIP_FLAG_OPEN)
		return COUNTER_PASS_VIP_OPEN;
	if (service && !is_compiled_mode(service->mode)) /* also of a connection whose entry the daemon holds back */
		return COUNTER_DROP_NOT_COMPILED;
	if (!match->old) {
		verdict = check_client_FAM(packet, key, service);
		if (verdict != CONTINUE)
			return verdict;
	}
	if (!service)
		return COUNTER_DROP_VIP_GUARD;
	reset_choice();
	return call_open_FAM(packet, key, service, match);
}

/* Does the first packet of an exchange need another backend? Not of one that has answered and is available. */
static __always_inline bool is_retry_FAM(struct packet *packet, struct flow_FAM *flow, bool answered)
{
	if (!(flow->flags & FLOW_FLAG_FORWARD) || is_midstream(packet))
		return false;
	return (is_syn(packet) && !answered) || is_unavailable(flow->backend);
}

/* The connection is not established: promote it, repair it, or open a new one. CONTINUE: match->flow is its entry. */
static __always_inline u32 advance_FAM(struct packet *packet, struct flow_key_FAM *key, struct match_FAM *match)
{
	bool answered = true;
	u32 verdict;

	match->old = match->ended ? match->ended : match->flow;
	match->retry = match->ended;
	match->complete = match->ended && !is_one_way(match->ended->flags); /* no answer to the SYN would begin it again */
	if (match->flow && !match->ended) {
		match->complete = check_other_FAM(packet, key, match->flow, &answered);
		if (packet->established) {
			match->flow = flows_FAM.lookup(key);
			return match->flow ? CONTINUE : COUNTER_DROP_INTERNAL;
		}
		match->retry = is_retry_FAM(packet, match->flow, answered);
		if (match->complete && !match->retry)
			return CONTINUE;
	}
	return accept_FAM(packet, key, match);
}

static __always_inline u32 handle_flow_FAM(struct packet *packet, struct flow_key_FAM *key)
{
	struct match_FAM match = {};
	u32 verdict = find_FAM(packet, key, &match);

	if (verdict == CONTINUE)
		verdict = fence_FAM(packet, &key->destination);
	if (verdict == CONTINUE && !packet->established)
		verdict = advance_FAM(packet, key, &match);
	if (verdict != CONTINUE)
		return verdict;
	if (!match.flow)
		return COUNTER_DROP_INTERNAL;
	return forward_flow_FAM(packet, key, match.flow);
}

/* A fragment without ports: it follows the flow of its datagram, or belongs to the kernel. */
static __always_inline u32 handle_later_FAM(struct packet *packet, struct flow_key_FAM *key)
{
	struct flow_FAM *flow = find_fragment_FAM(packet, key);
	bool is_icmp = packet->protocol == ICMP_PROTOCOL_FAM;
	u32 verdict;

	if (!flow)
		return handle_other_FAM(packet, &key->destination, is_icmp ? COUNTER_PASS_VIP_ICMP : COUNTER_DROP_FRAGMENT);
	if (!flow->farm) {
		key->protocol = 0; /* no reply */
		return COUNTER_PASS_NOT_OURS;
	}
	packet->farm = flow->farm;
	observe_flow_FAM(flow);
	verdict = fence_FAM(packet, &key->destination);
	return verdict == CONTINUE ? forward_FAM(packet, flow, false) : verdict;
}

/* --- all IP packets ---------------------------------------------------------------------------------------- */

/* The verdict on a packet, before its sender is answered. */
static __always_inline u32 dispatch_FAM(struct packet *packet, struct flow_key_FAM *key)
{
	u32 verdict = parse_FAM(packet, key);

	if (verdict == COUNTER_DROP_FRAGMENT)
		return handle_later_FAM(packet, key);
	if (verdict != CONTINUE)
		return handle_other_FAM(packet, &key->destination, verdict);
	switch (packet->protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
		copy_ports(&key->source_port, packet->transport);
		return handle_flow_FAM(packet, key);
	case ICMP_PROTOCOL_FAM:
		if (packet->transport + sizeof(struct icmp_header) > packet->end)
			return handle_other_FAM(packet, &key->destination, COUNTER_DROP_MALFORMED);
		return handle_icmp_FAM(packet, key);
	}
	return handle_other_FAM(packet, &key->destination, COUNTER_DROP_PROTOCOL);
}

static __always_inline u32 handle_FAM(struct packet *packet)
{
	struct flow_key_FAM key = {};
	u32 verdict = dispatch_FAM(packet, &key);

	if (verdict == COUNTER_PASS_NOT_OURS)
		verdict = handle_transit_FAM(packet, &key);
	return is_drop(verdict) ? answer_FAM(packet, &key, verdict) : verdict;
}
