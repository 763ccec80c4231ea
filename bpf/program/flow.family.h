/* The two entries of a connection: finding, making, promoting and closing them.
 *
 * Invariants. A reply tuple belongs to one connection: it is claimed by inserting it into `embryonic` without
 * overwriting and then finding it absent from `flows`; promotion writes `flows` before it deletes from `embryonic`, so a
 * claim sees it in one of them. In `flows` both entries stand or none; in `embryonic` the kernel may have evicted one,
 * so a forward hit there looks for its reply entry, and makes it again with the same backend if it is gone.
 */

/* The tuple the other direction of a flow arrives with. */
static __always_inline void reverse_FAM(struct flow_key_FAM *reverse, struct flow_FAM *flow, u8 protocol)
{
	reverse->source = flow->destination;
	reverse->destination = flow->source;
	reverse->source_port = flow->destination_port;
	reverse->destination_port = flow->source_port;
	reverse->protocol = protocol;
}

static __always_inline struct flow_FAM *find_flow_FAM(struct flow_key_FAM *key)
{
	struct flow_FAM *flow = flows_FAM.lookup(key);

	if (flow)
		return flow;
	return embryonic_FAM.lookup(key);
}

static __always_inline bool is_same_address_FAM(struct addr_FAM *one, struct addr_FAM *other)
{
	u32 difference = 0;

#pragma unroll
	for (u32 i = 0; i < WORDS_FAM; i++)
		difference |= one->word[i] ^ other->word[i];
	return !difference;
}

/* Does `reply` lead back to where packets with `key` come from? */
static __always_inline bool answers_FAM(struct flow_FAM *reply, struct flow_key_FAM *key)
{
	return is_same_address_FAM(&reply->destination, &key->source) &&
	       is_same_address_FAM(&reply->source, &key->destination) && reply->destination_port == key->source_port &&
	       reply->source_port == key->destination_port;
}

/* --- making a connection ----------------------------------------------------------------------------------- */

/* GO_ON: the reply tuple is this connection's. drop_reverse_conflict: it is another's. */
static __always_inline u32 claim_reply_FAM(struct flow_key_FAM *key, struct pair_FAM *pair)
{
	struct flow_FAM *found;
	int error = embryonic_FAM.insert(&pair->reply_key, &pair->reply);

	if (error && error != -EEXIST)
		return COUNTER_DROP_INTERNAL;
	if (error) {
		found = embryonic_FAM.lookup(&pair->reply_key);
		if (!found || !answers_FAM(found, key))
			return COUNTER_DROP_REVERSE_CONFLICT;
	} else {
		found = flows_FAM.lookup(&pair->reply_key);
		if (!found)
			return GO_ON;
		embryonic_FAM.delete(&pair->reply_key);
		if (!answers_FAM(found, key))
			return COUNTER_DROP_REVERSE_CONFLICT;
	}
	if (is_closed(found->state))
		found->state = 0;
	found->farm = pair->reply.farm;
	found->backend = pair->reply.backend;
	return GO_ON;
}

/* Fill in what follows from the port the backend will see, and claim it. */
static __always_inline u32 claim_port_FAM(struct flow_key_FAM *key, struct pair_FAM *pair, __be16 port)
{
	u32 before = key->source_port + key->destination_port;
	u32 after = port + pair->forward.destination_port;
	u16 ports = difference(before, after);

	pair->forward.source_port = port;
	pair->reply_key.destination_port = port;
	/* l3_delta holds the addresses' part alone until the claim has succeeded */
	pair->forward.l4_delta = fold(pair->forward.l3_delta + ports);
	pair->reply.l4_delta = ~pair->forward.l4_delta;
	return claim_reply_FAM(key, pair);
}

static __always_inline u32 claim_FAM(struct flow_key_FAM *key, struct pair_FAM *pair, u8 mode, u32 hash)
{
	if (mode == MODE_DNAT)
		return claim_port_FAM(key, pair, key->source_port);
#pragma clang loop unroll(disable)
	for (u32 attempt = 0; attempt < MAX_SNAT_CANDIDATES; attempt++) {
		u32 port = snat_candidate(attempt, ntohs(key->source_port), hash);
		u32 verdict;

		if (!port)
			continue;
		verdict = claim_port_FAM(key, pair, htons(port));
		if (verdict != COUNTER_DROP_REVERSE_CONFLICT)
			return verdict;
	}
	return COUNTER_DROP_SNAT_EXHAUSTED;
}

static __always_inline void fill_pair_FAM(struct packet *packet, struct flow_key_FAM *key, struct service *service,
					  struct backend *backend, u32 backend_id, struct pair_FAM *pair)
{
	u8 flags = is_midstream(packet) ? FLOW_FLAG_DERIVED : 0;
	struct flow_FAM *forward = &pair->forward, *reply = &pair->reply;
	u16 addresses;

	__builtin_memset(pair, 0, sizeof(*pair));
	if (service->mode == MODE_DNAT)
		forward->source = key->source;
	else
		__builtin_memcpy(&forward->source, service->snat_address, sizeof(forward->source));
	__builtin_memcpy(&forward->destination, backend->address, sizeof(forward->destination));
	forward->destination_port = htons(ntohs(backend->port) + ntohs(key->destination_port) - ntohs(service->port_first));
	reply->source = key->destination;
	reply->destination = key->source;
	reply->source_port = key->destination_port;
	reply->destination_port = key->source_port;
	reverse_FAM(&pair->reply_key, forward, key->protocol);
	addresses = difference(sum_words(key->source.word, WORDS_FAM) + sum_words(key->destination.word, WORDS_FAM),
			       sum_words(forward->source.word, WORDS_FAM) + sum_words(forward->destination.word, WORDS_FAM));
	forward->l3_delta = addresses;
	reply->l3_delta = header_delta_FAM(~addresses);
	forward->flags = flags | FLOW_FLAG_FORWARD;
	reply->flags = flags;
	forward->farm = reply->farm = service->farm;
	forward->backend = reply->backend = backend_id;
	forward->last_seen = reply->last_seen = now_ns(packet) >> TICK_SHIFT;
}

/* Make both entries. `backend_id` 0: a new connection, whose backend is to be chosen; else one to be repaired. */
static __always_inline u32 open_FAM(struct packet *packet, struct flow_key_FAM *key, struct service *service, u32 backend_id)
{
	u32 zero = 0;
	struct globals *global = globals.lookup(&zero);
	struct pair_FAM *pair = new_pair_FAM.lookup(&zero);
	struct backend *backend;
	bool is_new = !backend_id;
	u32 hash, verdict;

	if (!global || !pair)
		return COUNTER_DROP_INTERNAL;
	packet->farm = service->farm;
	hash = flow_hash_FAM(key, global->hash_seed);
	if (is_new) {
		if (!service->slot_count)
			return COUNTER_DROP_NO_BACKEND;
		if (is_midstream(packet) && service->scheduler == SCHEDULER_ROUNDROBIN)
			return COUNTER_DROP_NO_FLOW;
		backend_id = select_FAM(key, service, hash, global->hash_seed);
	}
	backend = backend_id ? backends.lookup(&backend_id) : NULL;
	if (!backend)
		return COUNTER_DROP_INTERNAL;
	fill_pair_FAM(packet, key, service, backend, backend_id, pair);
	verdict = claim_FAM(key, pair, service->mode, hash);
	if (verdict != GO_ON)
		return verdict;
	pair->forward.l3_delta = header_delta_FAM(pair->forward.l3_delta);
	if (embryonic_FAM.update(key, &pair->forward))
		return COUNTER_DROP_INTERNAL;
	if (is_new)
		count_connection(service->farm, backend_id);
	return GO_ON;
}

/* --- a connection's life ----------------------------------------------------------------------------------- */

/* Move both entries from `embryonic` to `flows`. False if there is no room: they stay where they are, and work. */
static __always_inline bool promote_FAM(struct packet *packet, struct flow_key_FAM *key, struct flow_FAM *forward,
					struct flow_key_FAM *reply_key, struct flow_FAM *reply)
{
	bool was_there = flows_FAM.lookup(reply_key);

	if (flows_FAM.update(reply_key, reply)) {
		count(packet, COUNTER_EVENT_FLOW_TABLE_FULL);
		return false;
	}
	if (flows_FAM.update(key, forward)) {
		if (!was_there)
			flows_FAM.delete(reply_key);
		count(packet, COUNTER_EVENT_FLOW_TABLE_FULL);
		return false;
	}
	count(packet, COUNTER_EVENT_PROMOTED);
	report_FAM(packet, key, forward, EVENT_TYPE_ESTABLISHED);
	embryonic_FAM.delete(reply_key);
	embryonic_FAM.delete(key);
	packet->lasting = true;
	return true;
}

/* Forget a connection of `flows` that has ended. */
static __always_inline void forget_FAM(struct flow_key_FAM *key, struct flow_FAM *forward)
{
	struct flow_key_FAM reply_key = {};

	reverse_FAM(&reply_key, forward, key->protocol);
	flows_FAM.delete(key);
	flows_FAM.delete(&reply_key);
}

/* Write a FIN or RST into both entries; tell the peer once the connection is over. */
static __always_inline void note_end_FAM(struct packet *packet, struct flow_key_FAM *key, struct flow_FAM *flow)
{
	u8 reset = packet->tcp_flags & TCP_RST ? FLOW_STATE_RST : 0;
	u8 finished = packet->tcp_flags & TCP_FIN ? FLOW_STATE_FIN_HERE : 0;
	u8 before = flow->state, state = before | reset | finished;
	struct flow_key_FAM other_key = {};
	struct flow_FAM *other;

	if (state == before)
		return;
	flow->state = state;
	reverse_FAM(&other_key, flow, key->protocol);
	other = find_flow_FAM(&other_key);
	if (other)
		other->state |= reset | (finished ? FLOW_STATE_FIN_THERE : 0);
	if (packet->lasting && is_closed(state) && !is_closed(before)) {
		if (flow->flags & FLOW_FLAG_FORWARD)
			report_FAM(packet, key, flow, EVENT_TYPE_CLOSED);
		else if (other)
			report_FAM(packet, &other_key, other, EVENT_TYPE_CLOSED);
	}
}

static __always_inline void touch_FAM(struct packet *packet, struct flow_key_FAM *key, struct flow_FAM *flow)
{
	u32 tick = now_ns(packet) >> TICK_SHIFT, before = flow->last_seen;
	u32 phase = key->source_port >> (16 - REFRESH_SHIFT); /* not all connections in the same second */

	if (before != tick) {
		flow->last_seen = tick;
		if (packet->lasting && flow->flags & FLOW_FLAG_FORWARD && ((before + phase) ^ (tick + phase)) >> REFRESH_SHIFT)
			report_FAM(packet, key, flow, EVENT_TYPE_REFRESH);
	}
	if (!(flow->state & FLOW_STATE_SEEN))
		flow->state |= FLOW_STATE_SEEN;
	if (packet->tcp_flags & (TCP_FIN | TCP_RST))
		note_end_FAM(packet, key, flow);
}

/* A hit in `embryonic`. False: its reply entry is gone, so it must be opened again. Promotes it if it is time for that. */
static __always_inline bool is_usable_FAM(struct packet *packet, struct flow_key_FAM *key, struct flow_FAM *flow)
{
	struct flow_key_FAM reply_key = {};
	struct flow_FAM *reply;

	if (!(flow->flags & FLOW_FLAG_FORWARD))
		return true;
	reverse_FAM(&reply_key, flow, key->protocol);
	reply = embryonic_FAM.lookup(&reply_key);
	if (!reply)
		reply = flows_FAM.lookup(&reply_key);
	if (!reply || !answers_FAM(reply, key))
		return false;
	if (!is_syn(packet) && reply->state & FLOW_STATE_SEEN)
		promote_FAM(packet, key, flow, &reply_key, reply);
	return true;
}
