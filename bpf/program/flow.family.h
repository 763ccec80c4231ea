/* The forward and the reply entry of a connection: found, created, promoted and closed.
 *
 * Invariants. A reply key belongs to one connection: it is claimed by inserting it into `embryonic` without overwriting
 * and then finding it absent from `flows`. Promotion writes `flows` before it deletes from `embryonic`, so that a claim
 * sees the key in one of them. `flows` holds both entries of a connection or neither. From `embryonic` the kernel may have
 * evicted one: a forward hit there looks up its reply entry, and repairs it with the same backend if it is missing.
 */

/* What is known of a packet's connection. */
struct match_FAM {
	struct flow_FAM *flow;  /* the packet's entry, in `flows` or in `embryonic` */
	struct flow_FAM *ended; /* the entry in `flows` of a connection that has ended, and whose tuple this SYN reuses */
	struct vip *vip;        /* the destination; looked up only if there is no entry */
	struct flow_FAM *old;   /* the forward entry that the tuple has already, while a connection is opened over it */
	bool complete;          /* `old` has its reply entry */
	bool retry;             /* select a backend anew; without it `old` is repaired */
	bool kept;              /* the same backend was selected, so `old` stays as it is */
};

/* The key of the other direction. */
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

/* Is `reply` the reply entry of the connection whose forward key is `key`? */
static __always_inline bool is_reply_to_FAM(struct flow_FAM *reply, struct flow_key_FAM *key)
{
	return is_same_address_FAM(&reply->destination, &key->source) &&
	       is_same_address_FAM(&reply->source, &key->destination) && reply->destination_port == key->source_port &&
	       reply->source_port == key->destination_port;
}

/* Delete both entries of a connection, and nothing of another one that has its reply key. The peer has the established ones. */
static __always_inline void end_connection_FAM(struct packet *packet, struct flow_key_FAM *key, struct flow_FAM *forward,
					       bool established)
{
	struct flow_key_FAM reply_key = {};
	struct flow_FAM *reply;

	reverse_FAM(&reply_key, forward, key->protocol);
	reply = find_flow_FAM(&reply_key);
	if (established)
		report_FAM(packet, key, forward, EVENT_TYPE_REMOVED);
	if (reply && is_reply_to_FAM(reply, key)) {
		flows_FAM.delete(&reply_key);
		embryonic_FAM.delete(&reply_key);
	}
	flows_FAM.delete(key);
	embryonic_FAM.delete(key);
}

/* --- creating a connection --------------------------------------------------------------------------------- */

/* CONTINUE: the reply key belongs to this connection. drop_reverse_conflict: to another one. */
static __always_inline u32 claim_reply_FAM(struct flow_key_FAM *key, struct connection_FAM *connection)
{
	struct flow_FAM *found;
	int error = embryonic_FAM.insert(&connection->reply_key, &connection->reply);

	if (error && error != -EEXIST)
		return COUNTER_DROP_INTERNAL;
	if (error) {
		found = embryonic_FAM.lookup(&connection->reply_key);
		if (!found || !is_reply_to_FAM(found, key))
			return COUNTER_DROP_REVERSE_CONFLICT;
	} else {
		found = flows_FAM.lookup(&connection->reply_key);
		if (!found)
			return CONTINUE;
		embryonic_FAM.delete(&connection->reply_key);
		if (!is_reply_to_FAM(found, key))
			return COUNTER_DROP_REVERSE_CONFLICT;
	}
	if (is_closed(found->state))
		found->state = 0;
	found->farm = connection->reply.farm;
	found->backend = connection->reply.backend;
	return CONTINUE;
}

/* Fill in the fields that depend on the source port towards the backend, and claim the reply key. */
static __always_inline u32 claim_port_FAM(struct flow_key_FAM *key, struct connection_FAM *connection, __be16 port)
{
	u32 before = key->source_port + key->destination_port;
	u32 after = port + connection->forward.destination_port;
	u16 ports = difference(before, after);

	connection->forward.source_port = port;
	connection->reply_key.destination_port = port;
	/* l3_delta is that of the addresses alone until the claim has succeeded */
	connection->forward.l4_delta = fold(connection->forward.l3_delta + ports);
	connection->reply.l4_delta = ~connection->forward.l4_delta;
	return claim_reply_FAM(key, connection);
}

static __always_inline u32 claim_FAM(struct flow_key_FAM *key, struct connection_FAM *connection, u8 mode, u32 hash)
{
	if (mode == MODE_DNAT)
		return claim_port_FAM(key, connection, key->source_port);
#pragma clang loop unroll(disable)
	for (u32 attempt = 0; attempt < MAX_SNAT_CANDIDATES; attempt++) {
		u32 port = snat_candidate(attempt, ntohs(key->source_port), hash);
		u32 verdict;

		if (!port)
			continue;
		verdict = claim_port_FAM(key, connection, htons(port));
		if (verdict != COUNTER_DROP_REVERSE_CONFLICT)
			return verdict;
	}
	return COUNTER_DROP_SNAT_EXHAUSTED;
}

static __always_inline void fill_connection_FAM(struct packet *packet, struct flow_key_FAM *key, struct service *service,
						struct backend *backend, u32 backend_id, struct connection_FAM *connection)
{
	u8 flags = is_midstream(packet) ? FLOW_FLAG_DERIVED : 0;
	struct flow_FAM *forward = &connection->forward, *reply = &connection->reply;
	u16 addresses;

	__builtin_memset(connection, 0, sizeof(*connection));
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
	reverse_FAM(&connection->reply_key, forward, key->protocol);
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

/* The backend of the connection; 0: an empty slot. */
static __always_inline u32 choose_FAM(struct packet *packet, struct flow_key_FAM *key, struct service *service,
				      struct match_FAM *match, u32 hash, u32 seed)
{
	struct flow_FAM *old = match->old;
	u32 idle_ticks;

	if (old && !match->retry)
		return old->backend;
	if (old && service->scheduler == SCHEDULER_ROUNDROBIN && !is_unavailable(old->backend)) {
		idle_ticks = (u32)(now_ns(packet) >> TICK_SHIFT) - old->last_seen;
		if (is_closed(old->state) || idle_ticks < SYN_RETRY_TICKS)
			return old->backend;
	}
	return select_FAM(key, service, hash, seed);
}

/* Create both entries, unless match->kept says that the old ones stay. */
static __always_inline u32 open_FAM(struct packet *packet, struct flow_key_FAM *key, struct service *service,
				    struct match_FAM *match)
{
	u32 zero = 0;
	struct globals *global = globals.lookup(&zero);
	struct connection_FAM *connection = scratch_FAM.lookup(&zero);
	struct backend *backend;
	bool is_new = !match->old || match->retry;
	u32 backend_id, hash, verdict;

	if (!global || !connection)
		return COUNTER_DROP_INTERNAL;
	packet->farm = service->farm;
	if (is_new && !service->slot_count)
		return COUNTER_DROP_NO_BACKEND;
	if (is_new && is_midstream(packet) && service->scheduler == SCHEDULER_ROUNDROBIN)
		return COUNTER_DROP_NO_FLOW;
	hash = flow_hash_FAM(key, global->hash_seed);
	backend_id = choose_FAM(packet, key, service, match, hash, global->hash_seed);
	if (match->old && match->retry) {
		match->kept = match->complete && match->old->backend == backend_id && match->old->farm == service->farm;
		if (match->kept)
			return CONTINUE;
		end_connection_FAM(packet, key, match->old, match->ended);
	}
	backend = backend_id ? backends.lookup(&backend_id) : NULL;
	if (!backend)
		return COUNTER_DROP_INTERNAL;
	fill_connection_FAM(packet, key, service, backend, backend_id, connection);
	verdict = claim_FAM(key, connection, service->mode, hash);
	if (verdict != CONTINUE)
		return verdict;
	connection->forward.l3_delta = header_delta_FAM(connection->forward.l3_delta);
	if (embryonic_FAM.update(key, &connection->forward))
		return COUNTER_DROP_INTERNAL;
	if (is_new)
		count_connection(service->farm, backend_id);
	return CONTINUE;
}

/* --- the life of a connection ------------------------------------------------------------------------------ */

/* Move both entries from `embryonic` to `flows`. If that is full they stay where they are, and still forward packets. */
static __always_inline void promote_FAM(struct packet *packet, struct flow_key_FAM *key, struct flow_FAM *forward,
					struct flow_key_FAM *reply_key, struct flow_FAM *reply)
{
	bool had_reply = flows_FAM.lookup(reply_key);

	if (flows_FAM.update(reply_key, reply)) {
		count(packet, COUNTER_EVENT_FLOW_TABLE_FULL);
		return;
	}
	if (flows_FAM.update(key, forward)) {
		if (!had_reply)
			flows_FAM.delete(reply_key);
		count(packet, COUNTER_EVENT_FLOW_TABLE_FULL);
		return;
	}
	count(packet, COUNTER_EVENT_PROMOTED);
	report_FAM(packet, key, forward, EVENT_TYPE_ESTABLISHED);
	embryonic_FAM.delete(reply_key);
	embryonic_FAM.delete(key);
	packet->established = true;
}

/* Record what a packet says about the state in both entries; report to the peer a connection that ends, or has not ended. */
static __always_inline void update_state_FAM(struct packet *packet, struct flow_key_FAM *key, struct flow_FAM *flow)
{
	u8 before = flow->state, state = next_state(packet, before);
	struct flow_key_FAM other_key = {};
	struct flow_FAM *other;

	if (state == before)
		return;
	flow->state = state;
	if (!((state ^ before) & ~FLOW_STATE_SEEN))
		return;
	reverse_FAM(&other_key, flow, key->protocol);
	other = find_flow_FAM(&other_key);
	if (other)
		other->state = mirrored_state(state, other->state);
	if (is_closed(state) == is_closed(before))
		return;
	if (packet->tcp_flags & TCP_SYN)
		count_connection(flow->farm,
				 flow->backend); /* the tuple of a closed connection, reused with the same backend */
	if (!packet->established || (!other && !(flow->flags & FLOW_FLAG_FORWARD)))
		return;
	report_FAM(packet, flow->flags & FLOW_FLAG_FORWARD ? key : &other_key, flow->flags & FLOW_FLAG_FORWARD ? flow : other,
		   is_closed(state) ? EVENT_TYPE_CLOSED : EVENT_TYPE_ESTABLISHED);
}

static __always_inline void touch_FAM(struct packet *packet, struct flow_key_FAM *key, struct flow_FAM *flow)
{
	const u8 revocable = FLOW_STATE_RST | FLOW_STATE_FIN_HERE;
	u32 tick = now_ns(packet) >> TICK_SHIFT, before = flow->last_seen;
	u32 phase = key->source_port >> (16 - REFRESH_SHIFT); /* spreads the reports of all connections over time */

	if (before != tick) {
		flow->last_seen = tick;
		if (packet->established && flow->flags & FLOW_FLAG_FORWARD &&
		    ((before + phase) ^ (tick + phase)) >> REFRESH_SHIFT)
			report_FAM(packet, key, flow, EVENT_TYPE_REFRESH);
	}
	if ((flow->state & (FLOW_STATE_SEEN | revocable)) != FLOW_STATE_SEEN || packet->tcp_flags & (TCP_FIN | TCP_RST))
		update_state_FAM(packet, key, flow);
}

/* A hit in `embryonic`: promote the connection if both ends have answered; of UDP, also if one has answered twice. False: the
 * entry of the other direction is missing. */
static __always_inline bool check_other_FAM(struct packet *packet, struct flow_key_FAM *key, struct flow_FAM *flow,
					    bool *answered)
{
	bool is_forward = flow->flags & FLOW_FLAG_FORWARD;
	struct flow_key_FAM other_key = {};
	struct flow_FAM *other;

	if (!is_forward && !(packet->protocol == IPPROTO_UDP && flow->state & FLOW_STATE_SEEN))
		return true;
	reverse_FAM(&other_key, flow, key->protocol);
	other = embryonic_FAM.lookup(&other_key);
	if (!other)
		other = flows_FAM.lookup(&other_key);
	if (!other || !is_reply_to_FAM(other, key))
		return !is_forward;
	*answered = other->state & FLOW_STATE_SEEN;
	if (!*answered || is_syn(packet) || (packet->tcp_flags | other->state << 8) & (TCP_RST | FLOW_STATE_RST << 8))
		return true;
	if (is_forward)
		promote_FAM(packet, key, flow, &other_key, other);
	else
		promote_FAM(packet, &other_key, other, key, flow);
	return true;
}
