/* The way of an IP packet, step by step: each step answers a verdict, or GO_ON. */

/* The lease is closed. While the VIPs move to the peer in good order, what still comes here for one goes there by way of the
 * kernel, which keeps it until the peer has announced itself. A reply that is not for a VIP (mode dnat) may not. */
static __always_inline u32 fenced_FAM(struct addr_FAM *destination)
{
	u32 zero = 0;
	struct lease *held = lease.lookup(&zero);

	if (held && held->deadline_ns == LEASE_HANDED_OVER_NS && vips_FAM.lookup((struct vip_key_FAM *)destination))
		return COUNTER_PASS_HANDED_OVER;
	return COUNTER_DROP_FENCED;
}

/* A packet no flow explains, for `address`: the kernel's unless that is a VIP, else `verdict`. */
static __always_inline u32 guard_FAM(struct packet *packet, struct addr_FAM *address, u32 verdict)
{
	struct vip *vip = vips_FAM.lookup((struct vip_key_FAM *)address);

	if (!vip)
		return COUNTER_PASS_NOT_OURS;
	if (is_fenced(packet))
		return fenced_FAM(address);
	if (verdict == COUNTER_DROP_PROTOCOL && vip->flags & VIP_FLAG_OPEN)
		return COUNTER_PASS_VIP_OPEN;
	return verdict;
}

/* No usable flow: which listener is it for? Opens the connection; GO_ON when its flow stands in `embryonic`. */
static __always_inline u32 serve_FAM(struct packet *packet, struct flow_key_FAM *key, u32 backend_id)
{
	struct vip *vip = vips_FAM.lookup((struct vip_key_FAM *)&key->destination);
	struct service *found, service;

	if (!vip)
		return COUNTER_PASS_NOT_OURS;
	if (is_fenced(packet))
		return fenced_FAM(&key->destination);
	found = find_service_FAM(key, vip);
	if (!found)
		return vip->flags & VIP_FLAG_OPEN ? COUNTER_PASS_VIP_OPEN : COUNTER_DROP_VIP_GUARD;
	service = *found; /* the daemon may replace it at any moment */
	return open_FAM(packet, key, &service, backend_id);
}

/* Not in `flows`, or ended there: find the flow in `embryonic`, promote it, or open a connection. */
static __always_inline u32 find_or_open_FAM(struct packet *packet, struct flow_key_FAM *key, struct flow_FAM **flow)
{
	struct flow_FAM *found = embryonic_FAM.lookup(key);
	u32 backend_id = 0, verdict;

	if (found && !is_reopened(packet, found->flags, found->state)) {
		packet->farm = found->farm;
		if (is_fenced(packet))
			return fenced_FAM(&key->destination);
		if (is_usable_FAM(packet, key, found)) {
			*flow = packet->lasting ? flows_FAM.lookup(key) : found;
			return GO_ON;
		}
		backend_id = found->backend;
	}
	verdict = serve_FAM(packet, key, backend_id);
	if (verdict == GO_ON)
		*flow = embryonic_FAM.lookup(key);
	return verdict;
}

static __always_inline u32 handle_flow_FAM(struct packet *packet, struct flow_key_FAM *key)
{
	struct flow_FAM *flow = flows_FAM.lookup(key);
	u32 verdict;

	if (flow && !is_reopened(packet, flow->flags, flow->state)) {
		packet->lasting = true;
		if (is_fenced(packet)) {
			packet->farm = flow->farm;
			return fenced_FAM(&key->destination);
		}
	} else {
		if (flow) {
			packet->farm = flow->farm;
			if (is_fenced(packet))
				return fenced_FAM(&key->destination);
			forget_FAM(key, flow);
			flow = NULL;
		}
		verdict = find_or_open_FAM(packet, key, &flow);
		if (verdict != GO_ON)
			return verdict;
		if (!flow)
			return COUNTER_DROP_INTERNAL;
	}
	touch_FAM(packet, key, flow);
	return forward_FAM(packet, flow);
}

static __always_inline u32 handle_icmp_FAM(struct packet *packet, struct flow_key_FAM *key)
{
	u8 type = *(u8 *)packet->transport;
	u32 verdict = is_icmp_error_FAM(type) ? translate_error_FAM(packet, key) : handle_solicitation_FAM(packet);

	if (verdict != GO_ON)
		return verdict;
	return guard_FAM(packet, &key->destination, COUNTER_PASS_VIP_ICMP);
}

static __always_inline u32 handle_FAM(struct packet *packet)
{
	struct flow_key_FAM key = {};
	u32 verdict = parse_FAM(packet, &key);

	if (verdict != GO_ON)
		return guard_FAM(packet, &key.destination, verdict);
	switch (packet->protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
		key.source_port = ((struct ports *)packet->transport)->source;
		key.destination_port = ((struct ports *)packet->transport)->destination;
		return handle_flow_FAM(packet, &key);
	case ICMP_PROTOCOL_FAM:
		if (packet->transport + sizeof(struct icmp_header) > packet->end)
			return guard_FAM(packet, &key.destination, COUNTER_DROP_MALFORMED);
		return handle_icmp_FAM(packet, &key);
	}
	return guard_FAM(packet, &key.destination, COUNTER_DROP_PROTOCOL);
}
