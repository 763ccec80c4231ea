/* The program that opens a connection for a packet that the pipeline has found to be the first one, or one to repair it for. */

/* The pipeline's side. Returns only if the call fails. `found`: the listener; the daemon may replace it at any moment. */
static __always_inline u32 call_open_FAM(struct packet *packet, struct flow_key_FAM *key, struct service *found,
					 struct match_FAM *match)
{
	u32 zero = 0;
	struct connection_FAM *connection = scratch_FAM.lookup(&zero);

	if (!connection)
		return COUNTER_DROP_INTERNAL;
	connection->service = *found;
	connection->suspended.key = *key;
	connection->suspended.has_old = !!match->old;
	connection->suspended.ended = !!match->ended;
	connection->suspended.complete = match->complete;
	connection->suspended.retry = match->retry;
	suspend_FAM(packet, &connection->suspended);
	handlers.call(packet->context, HANDLER_OPEN_FAM);
	return COUNTER_DROP_INTERNAL;
}

/* The entry that the tuple has already; the kernel may have evicted it meanwhile. */
static __always_inline void find_old_FAM(struct flow_key_FAM *key, struct suspended_FAM *suspended, struct match_FAM *match)
{
	if (!suspended->has_old)
		return;
	if (suspended->ended)
		match->old = match->ended = flows_FAM.lookup(key);
	else
		match->old = embryonic_FAM.lookup(key);
	match->complete = suspended->complete;
	match->retry = suspended->retry;
}

/* The forward entry of a new connection is written last, with its state and next hop. A lookup of it would cost more than its
 * own time: it would mark the entry as used, and of a flood, entries that are marked take the kernel longest to evict.
 */
static __always_inline u32 open_and_forward_FAM(struct packet *packet, struct flow_key_FAM *key,
						struct connection_FAM *connection)
{
	struct match_FAM match = {};
	bool opened = false;
	u32 verdict;

	find_old_FAM(key, &connection->suspended, &match);
	verdict = admit_FAM(packet, key, match.old);
	if (verdict != CONTINUE)
		return verdict;
	verdict = prepare_FAM(packet, key, &match);
	if (verdict == KEEP) {
		packet->established = match.ended;
		match.flow = match.old;
	} else if (verdict == CONTINUE) {
		verdict = open_FAM(packet, key, connection);
		if (verdict != CONTINUE)
			return verdict;
		match.flow = &connection->forward;
		opened = true;
	} else {
		return verdict;
	}
	if (!match.flow)
		return COUNTER_DROP_INTERNAL;
	verdict = forward_flow_FAM(packet, key, match.flow); /* of a fragment it changes `key` */
	if (opened && embryonic_FAM.update(&connection->suspended.key, match.flow))
		return COUNTER_DROP_INTERNAL;
	return verdict;
}

static __always_inline u32 handle_open_FAM(struct packet *packet)
{
	u32 zero = 0, verdict;
	struct connection_FAM *connection = scratch_FAM.lookup(&zero);
	struct flow_key_FAM key;

	if (!connection || !resume_FAM(packet, &connection->suspended))
		return COUNTER_DROP_INTERNAL;
	key = connection->suspended.key;
	verdict = open_and_forward_FAM(packet, &key, connection);
	return is_drop(verdict) ? answer_FAM(packet, &key, verdict) : verdict;
}
