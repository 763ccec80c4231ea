/* The fast path: a whole TCP or UDP packet of an established connection.
 *
 * It does what the pipeline would do, and leaves everything else to it, drops included: their senders may get an answer. So it
 * changes nothing of a packet before it is sure to forward it; what it changes in a flow does not change again.
 */

/* The verdict on the packet; CONTINUE: it needs the pipeline. */
static __always_inline u32 forward_known_FAM(struct packet *packet)
{
	struct flow_key_FAM key = {};
	struct recent_FAM *copy;
	struct flow_FAM *flow;
	bool is_copy;
	u32 verdict, number;
	u64 hash;

	if (parse_FAM(packet, &key) != CONTINUE || packet->fragment)
		return CONTINUE;
	if (packet->protocol != IPPROTO_TCP && packet->protocol != IPPROTO_UDP)
		return CONTINUE;
	if (packet->transport + sizeof(struct udphdr) > packet->end) /* for the verifier: parse_transport has checked it */
		return CONTINUE;
	copy_ports(&key.source_port, packet->transport);
	hash = place_hash_FAM(&key);
	number = changes_of_FAM(hash); /* before the flow is read */
	copy = copy_at_FAM(hash);
	if (!copy)
		return CONTINUE;
	is_copy = is_usable_FAM(packet, copy, &key, number);
	flow = is_copy ? &copy->flow : flows_FAM.lookup(&key);
	if (!flow || is_syn(packet)) /* a SYN may begin the connection again, and does if its own RST has closed it here */
		return CONTINUE;
#ifdef TOA
	if (flow->flags & FLOW_FLAG_TOA && is_toa_pending_FAM(flow))
		return CONTINUE;
#endif
	if (is_tagged(packet) && is_tunnelled(flow->flags)) /* the outer header takes the place of the tag */
		return CONTINUE;
	packet->established = true;
	packet->farm = flow->farm;
	observe_flow_FAM(flow);
	verdict = fence_FAM(packet, &key.destination);
	if (verdict != CONTINUE)
		return verdict;
	if (!is_copy)
		touch_FAM(packet, &key, flow);
	verdict = forward_FAM(packet, flow, true);
	if (is_drop(verdict))
		return CONTINUE;
	if (!is_copy && !is_pass(verdict))
		copy_flow_FAM(packet, copy, &key, number, flow);
	return verdict;
}
