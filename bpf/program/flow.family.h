/* The forward and the reply entry of a connection: found, created, promoted and closed.
 *
 * Invariants. A reply key belongs to one connection: it is claimed by inserting it into `embryonic` without overwriting
 * and then finding it absent from `flows`. A connection that is one way (tunnel.h) has no reply key. Promotion writes `flows`
 * before it deletes from `embryonic`, so that a claim sees the key in one of them. `flows` holds both entries of a connection
 * or neither. From `embryonic` the kernel may have evicted one: a forward hit there looks up its reply entry, and repairs it
 * with the same backend if it is missing.
 */

/* What is known of a packet's connection. */
struct match_FAM {
	struct flow_FAM *flow;  /* the packet's entry, in `flows` or in `embryonic` */
	struct flow_FAM *ended; /* the entry in `flows` of a connection that has ended, and whose tuple this SYN reuses */
	struct vip *vip;        /* the destination; looked up only if there is no entry */
	struct flow_FAM *old;   /* the forward entry that the tuple has already, while a connection is opened over it */
	bool complete;          /* `old` has its reply entry */
	bool retry;             /* select a backend again; without it `old` is repaired */
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

/* The same in the scratch map: the stack is full. Valid until a connection is opened. */
static __always_inline struct flow_key_FAM *other_key_FAM(struct flow_FAM *flow, u8 protocol)
{
	u32 zero = 0;
	struct connection_FAM *connection = scratch_FAM.lookup(&zero);

	if (!connection)
		return NULL;
	reverse_FAM(&connection->other_key, flow, protocol);
	return &connection->other_key;
}

static __always_inline struct flow_FAM *find_flow_FAM(struct flow_key_FAM *key)
{
	struct flow_FAM *flow = flows_FAM.lookup(key);

	if (flow)
		return flow;
	return embryonic_FAM.lookup(key);
}

/* Is `reply` the reply entry of the connection whose forward key is `key`? */
static __always_inline bool is_reply_to_FAM(struct flow_FAM *reply, struct flow_key_FAM *key)
{
	return is_same_address_FAM(&reply->destination, &key->source) &&
	       is_same_address_FAM(&reply->source, &key->destination) && reply->destination_port == key->source_port &&
	       reply->source_port == key->destination_port;
}

/* Delete an entry, whichever map it is in. */
static __always_inline void delete_flow_FAM(struct flow_key_FAM *key)
{
	flows_FAM.delete(key);
	embryonic_FAM.delete(key);
	end_copies_FAM(key);
}

/* The connection with this forward entry ends: it is counted no more. */
static __always_inline void forget_load_FAM(struct flow_FAM *forward)
{
	if (!is_closed(forward->state))
		count_load(forward->farm, forward->backend, LOAD_CLOSED);
}

/* Delete the entries of a connection, and nothing of another one that has its reply key. The peer has the established ones. */
static __always_inline void end_connection_FAM(struct packet *packet, struct flow_key_FAM *key, struct flow_FAM *forward,
					       bool established, struct flow_key_FAM *reply_key)
{
	struct flow_FAM *reply;

	reverse_FAM(reply_key, forward, key->protocol);
	reply = is_one_way(forward->flags) ? NULL : find_flow_FAM(reply_key);
	forget_load_FAM(forward);
	if (established)
		report_FAM(packet, key, forward, EVENT_TYPE_REMOVED);
	if (reply && is_reply_to_FAM(reply, key))
		delete_flow_FAM(reply_key);
	delete_flow_FAM(key);
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
	end_copies_FAM(&connection->reply_key);
	return CONTINUE;
}

/* The connection that has the reply key ends. */
static __always_inline void evict_FAM(struct packet *packet, struct flow_key_FAM *reply_key, struct flow_key_FAM *forward_key)
{
	struct flow_FAM *reply = find_flow_FAM(reply_key), *forward;

	if (!reply)
		return;
	reverse_FAM(forward_key, reply, reply_key->protocol);
	forward = find_flow_FAM(forward_key);
	if (forward && is_reply_to_FAM(forward, reply_key)) {
		forget_load_FAM(forward);
		if (flows_FAM.lookup(forward_key))
			report_FAM(packet, forward_key, forward, EVENT_TYPE_REMOVED);
		delete_flow_FAM(forward_key);
	}
	delete_flow_FAM(reply_key);
}

/* Write a source into the reply key: the port, and one of the addresses that the farm has for its backends. */
static __always_inline void set_source_FAM(struct connection_FAM *connection, struct farm_settings *settings, u32 spread,
					   u32 port)
{
	u32 index;

	connection->reply_key.destination_port = htons(port);
	if (connection->snat_count < 2)
		return;
	index = scale(spread << 16, connection->snat_count);
	if (index < MAX_SNAT_ADDRESSES)
		__builtin_memcpy(&connection->reply_key.destination, settings->snat_FAM_address + WORDS_FAM * index,
				 sizeof(struct addr_FAM));
}

/* The addresses and ports to search. */
static __always_inline void begin_search_FAM(struct packet *packet, struct connection_FAM *connection,
					     struct farm_settings *settings)
{
	set_port_range(&connection->ports, ntohs(connection->reply.destination_port));
	connection->tick = now_ns(packet) >> TICK_SHIFT;
	__builtin_memcpy(connection->addresses, &connection->reply_key.destination, sizeof(struct addr_FAM));
	if (connection->snat_count < 2) {
		connection->snat_count = 1;
		return;
	}
#pragma unroll
	for (u32 i = 0; i < MAX_SNAT_ADDRESSES; i++)
		__builtin_memcpy(connection->addresses + WORDS_FAM * i, settings->snat_FAM_address + WORDS_FAM * i,
				 sizeof(struct addr_FAM));
}

/* Write the source of an attempt into the reply key. */
static __always_inline void set_attempt_FAM(struct connection_FAM *connection, u32 spread, u32 port)
{
	u32 index = scale(spread << 16, connection->snat_count) % MAX_SNAT_ADDRESSES;

	connection->reply_key.destination_port = htons(port);
	__builtin_memcpy(&connection->reply_key.destination, connection->addresses + WORDS_FAM * index,
			 sizeof(struct addr_FAM));
}

/* Find a reply key that no connection has, or else one whose connection may end: connection->found, ->spread and ->port.
 * They are in the scratch map, and the loop has few branches, because the verifier would follow different values of variables
 * and each branch of each attempt separately. */
static __always_inline void search_source_FAM(struct connection_FAM *connection)
{
	u32 salted = connection->hash + mix(connection->tick, GOLDEN_RATIO), spread, port;
	volatile u32 *rank = (volatile u32 *)&connection->rank;
	struct flow_FAM *holder;

#pragma clang loop unroll(disable)
	for (u32 attempt = 1; attempt < MAX_SNAT_CANDIDATES; attempt = next_round(attempt)) {
		spread = spread_attempt(attempt < FIXED_SNAT_CANDIDATES ? connection->hash : salted, attempt);
		port = port_of_attempt(&connection->ports, connection->hash, spread, attempt);
		set_attempt_FAM(connection, spread, port);
		holder = flows_FAM.lookup(&connection->reply_key);
		if (holder) {
			*rank = rank_of_established(holder->state, connection->tick - holder->last_seen);
		} else {
			holder = embryonic_FAM.lookup(&connection->reply_key);
			*rank = holder ? rank_of_embryonic(connection->tick - holder->last_seen) : SOURCE_FREE;
		}
		if (*rank <= connection->found)
			continue;
		connection->found = *rank;
		connection->spread = spread;
		connection->port = port;
		if (connection->found >= SOURCE_RESTED)
			return;
	}
}

/* With the source known: the rewrite of both directions. */
static __always_inline void fill_source_FAM(struct flow_key_FAM *key, struct connection_FAM *connection)
{
	struct flow_FAM *forward = &connection->forward, *reply = &connection->reply;
	u16 addresses, ports;

	forward->source = connection->reply_key.destination;
	forward->source_port = connection->reply_key.destination_port;
	addresses = difference(sum_words(key->source.word, WORDS_FAM) + sum_words(key->destination.word, WORDS_FAM),
			       sum_words(forward->source.word, WORDS_FAM) + sum_words(forward->destination.word, WORDS_FAM));
	ports = difference(key->source_port + key->destination_port, forward->source_port + forward->destination_port);
	forward->l3_delta = header_delta_FAM(addresses);
	reply->l3_delta = header_delta_FAM(~addresses);
	forward->l4_delta = fold(addresses + ports);
	reply->l4_delta = ~forward->l4_delta;
}

/* The first source that a connection tries: with the client's own port. NULL: internal error. */
static __always_inline struct farm_settings *set_first_source_FAM(struct flow_key_FAM *key, struct connection_FAM *connection)
{
	u32 port = ntohs(key->source_port), spread = connection->hash;
	struct farm_settings *settings = farm_settings.lookup(&connection->member_key.farm);

	if (!settings)
		return NULL;
	if (connection->mode != MODE_DNAT)
		connection->snat_count = settings->snat_count_FAM;
#ifdef TOA
	if (settings->flags & FARM_FLAG_TOA && key->protocol == IPPROTO_TCP && connection->mode == MODE_SNAT) {
		connection->forward.flags |= FLOW_FLAG_TOA;
		connection->reply.flags |= FLOW_FLAG_TOA;
	}
#endif
	if (!port && connection->mode != MODE_DNAT) { /* "no reply is wanted" (RFC 768), but the answers need a port */
		spread = spread_attempt(spread, 1);
		set_port_range(&connection->ports, 0);
		port = port_of_attempt(&connection->ports, connection->hash, spread, 1);
	}
	set_source_FAM(connection, settings, spread, port);
	fill_source_FAM(key, connection);
	return settings;
}

/* Find a source for the connection towards its backend: the client's own port if it is free. CONTINUE: the reply key is its. */
static __always_inline u32 claim_FAM(struct packet *packet, struct flow_key_FAM *key, struct connection_FAM *connection)
{
	struct farm_settings *settings = set_first_source_FAM(key, connection);
	u32 verdict;

	if (!settings)
		return COUNTER_DROP_INTERNAL;
	verdict = claim_reply_FAM(key, connection);
	if (verdict != COUNTER_DROP_REVERSE_CONFLICT)
		return verdict;
	suspend_FAM(packet, &connection->suspended);
	if (!resume_FAM(packet, &connection->suspended)) /* the verifier follows the loop below once */
		return COUNTER_DROP_INTERNAL;
	begin_search_FAM(packet, connection, settings);
	search_source_FAM(connection);
	if (!connection->found)
		return connection->mode == MODE_DNAT ? COUNTER_DROP_REVERSE_CONFLICT : COUNTER_DROP_SNAT_EXHAUSTED;
	set_attempt_FAM(connection, connection->spread, connection->port);
	if (connection->found != SOURCE_FREE)
		evict_FAM(packet, &connection->reply_key, &connection->other_key);
	fill_source_FAM(key, connection);
	return claim_reply_FAM(key, connection);
}

/* How the client's address is treated: a backend that is a client of its own farm would get the answer past this node. */
static __always_inline u8 mode_of_FAM(struct flow_key_FAM *key, struct service *service, struct member_key_FAM *member)
{
	member->address = key->source;
	member->farm = service->farm;
	if (service->mode == MODE_DNAT && members_FAM.lookup(member))
		return MODE_SNAT;
	return service->mode;
}

/* The connection is one way. A server's FIN is not seen here, so it counts as sent: the client's FIN closes the connection. */
static __always_inline void fill_one_way_FAM(struct flow_key_FAM *key, struct backend *backend,
					     struct connection_FAM *connection)
{
	struct flow_FAM *forward = &connection->forward;

	forward->source = key->source;
	forward->source_port = key->source_port;
	forward->destination_port = key->destination_port;
	forward->flags |= flags_of_mode(connection->mode);
	forward->state = FLOW_STATE_FIN_THERE;
#ifdef IPIP
	if (connection->mode != MODE_IPIP || !(backend->flags & BACKEND_FLAG_V6) == !IS_V6_FAM)
		return;
	forward->flags |= FLOW_FLAG_OTHER_FAMILY;
	set_other_destination_FAM(forward, backend->address);
#endif
}

/* Fill in all but the source port towards the backend. */
static __always_inline void fill_connection_FAM(struct packet *packet, struct flow_key_FAM *key, struct service *service,
						struct backend *backend, u32 backend_id, struct connection_FAM *connection)
{
	u8 flags = is_midstream(packet) ? FLOW_FLAG_DERIVED : 0;
	struct flow_FAM *forward = &connection->forward, *reply = &connection->reply;

	__builtin_memset(&connection->forward, 0, sizeof(*connection) - ((void *)&connection->forward - (void *)connection));
	connection->mode = mode_of_FAM(key, service, &connection->member_key);
	if (connection->mode == MODE_DNAT)
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
	forward->flags = flags | FLOW_FLAG_FORWARD;
	reply->flags = flags;
	if (flags_of_mode(connection->mode))
		fill_one_way_FAM(key, backend, connection);
	forward->farm = reply->farm = service->farm;
	forward->backend = reply->backend = backend_id;
	forward->last_seen = reply->last_seen = now_ns(packet) >> TICK_SHIFT;
}

/* The backend of the connection; 0: an empty slot; ALL_FULL: none may have one more connection. */
static __always_inline u32 choose_FAM(struct packet *packet, struct flow_key_FAM *key, struct service *service,
				      struct match_FAM *match, u32 hash, u32 seed)
{
	struct flow_FAM *old = match->old;
	u32 backend_id = 0;
	bool is_affine;

	if (old && !match->retry)
		return old->backend;
#ifdef AFFINITY
	backend_id = affine_backend_FAM(packet, key, service, seed);
#endif
	is_affine = backend_id;
	if (!is_affine && old && !is_hash(service->scheduler) && !is_unavailable(old->backend)) {
		if (is_closed(old->state) || age_of(packet, old->last_seen) < SYN_RETRY_TICKS)
			return old->backend;
	}
	if (!is_affine && !is_hash(service->scheduler) && is_pressed(packet, FAMILY_FAM)) {
		backend_id = backend_of_slot(service, hash % service->slot_count);
		is_affine = true;
	} else if (!is_affine) {
		backend_id = select_FAM(key, service, hash, seed);
	}
	if (old && !is_closed(old->state) && old->backend == backend_id)
		return backend_id; /* it counts already */
	return with_capacity(packet, service, backend_id, hash, is_affine, HANDLER_OPEN_FAM);
}

/* Select the backend of a connection on the listener in the scratch map, and put there what is known of it. KEEP: it is the same
 * as before, and the entries that the tuple has stay. */
static __always_inline u32 prepare_FAM(struct packet *packet, struct flow_key_FAM *key, struct match_FAM *match)
{
	u32 zero = 0;
	struct globals *global = globals.lookup(&zero);
	struct connection_FAM *connection = scratch_FAM.lookup(&zero);
	struct backend *backend;
	struct service *service;
	bool is_new = !match->old || match->retry;
	u8 counted = match->old ? match->old->state & FLOW_STATE_COUNTED : 0; /* the client has this one already */
	u32 backend_id, hash;

	if (!global || !connection)
		return COUNTER_DROP_INTERNAL;
	service = &connection->service;
	packet->farm = service->farm;
	observe_farm(service->farm, 0);
	if (is_new && !service->slot_count)
		return COUNTER_DROP_NO_BACKEND;
	if (is_new && is_midstream(packet) && !is_hash(service->scheduler) && !is_pressed(packet, FAMILY_FAM))
		return COUNTER_DROP_NO_FLOW;
	hash = flow_hash_FAM(key, global->hash_seed);
	backend_id = choose_FAM(packet, key, service, match, hash, global->hash_seed);
	if (backend_id == ALL_FULL)
		return COUNTER_DROP_BACKEND_FULL;
	if (match->old && match->retry) {
		if (match->complete && match->old->backend == backend_id && match->old->farm == service->farm)
			return KEEP;
		end_connection_FAM(packet, key, match->old, match->ended, &connection->other_key);
	}
	backend = backend_id ? backends.lookup(&backend_id) : NULL;
	if (!backend)
		return COUNTER_DROP_INTERNAL;
	fill_connection_FAM(packet, key, service, backend, backend_id, connection);
	connection->hash = hash;
	connection->is_new = is_new;
	connection->forward.state |= counted;
	return CONTINUE;
}

/* Open the prepared connection: its reply entry is created, and connection->forward is complete. */
static __always_inline u32 open_FAM(struct packet *packet, struct flow_key_FAM *key, struct connection_FAM *connection)
{
	u32 verdict = is_one_way(connection->forward.flags) ? CONTINUE : claim_FAM(packet, key, connection);

	if (verdict != CONTINUE || !connection->is_new)
		return verdict;
	count_half_open_FAM(&connection->forward);
	count_connection(connection->forward.farm, connection->forward.backend);
#ifdef PERSISTENCE
	remember_client_FAM(packet, key, connection->forward.farm, connection->forward.backend);
#endif
	count_load(connection->forward.farm, connection->forward.backend, LOAD_OPENED);
	add_pressure(packet, FAMILY_FAM);
	return CONTINUE;
}

/* --- the life of a connection ------------------------------------------------------------------------------ */

/* Move both entries from `embryonic` to `flows`. If that is full they stay where they are, and still forward packets. */
static __always_inline void promote_FAM(struct packet *packet, struct flow_key_FAM *key, struct flow_FAM *forward,
					struct flow_key_FAM *reply_key, struct flow_FAM *reply)
{
	bool had_reply = flows_FAM.lookup(reply_key);

	leave_half_open_FAM(packet, &key->source, forward);
	end_copies_FAM(reply_key);
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
	count_load(forward->farm, forward->backend, LOAD_PROMOTED);
	relieve_pressure(FAMILY_FAM);
	report_FAM(packet, key, forward, EVENT_TYPE_ESTABLISHED);
	embryonic_FAM.delete(reply_key);
	embryonic_FAM.delete(key);
	packet->established = true;
}

/* Is this a datagram of a server? An exchange that has an answer is half-open no more. */
static __always_inline bool is_answer_FAM(struct packet *packet, struct flow_FAM *flow)
{
#ifdef HALF_OPEN
	return packet->protocol == IPPROTO_UDP && !(flow->flags & FLOW_FLAG_FORWARD);
#else
	return false;
#endif
}

/* Count a connection that ends, has an answer, or continues after it seemed to have ended. `forward`: its forward entry. */
static __always_inline void count_change_FAM(struct packet *packet, struct addr_FAM *client, struct flow_FAM *forward,
					     u8 before)
{
	bool closed = is_closed(forward->state);

	if (closed != is_closed(before)) {
		if (closed)
			count_load(forward->farm, forward->backend, LOAD_CLOSED);
		else
			count_load(forward->farm, forward->backend, LOAD_OPENED);
	}
	if (closed || packet->protocol == IPPROTO_UDP)
		leave_half_open_FAM(packet, client, forward);
}

/* Record what a packet shows of the state in both entries; report to the peer a connection that ends, or has not ended. */
static __always_inline void update_state_FAM(struct packet *packet, struct flow_key_FAM *key, struct flow_FAM *flow)
{
	u8 before = flow->state, state = next_state(packet, before);
	struct flow_key_FAM *other_key;
	struct flow_FAM *other, *forward;

	if (state == before)
		return;
	flow->state = state;
	if (!((state ^ before) & ~FLOW_STATE_SEEN) && !is_answer_FAM(packet, flow))
		return; /* no packet has used a copy: there is none before the first packet */
	other_key = other_key_FAM(flow, key->protocol);
	if (!other_key)
		return;
	other = is_one_way(flow->flags) ? NULL : find_flow_FAM(other_key);
	if (other) {
		other->state = mirrored_state(state, other->state);
		end_copies_FAM(other_key);
	}
	end_copies_FAM(key);
	if (is_closed(state) == is_closed(before) && !is_answer_FAM(packet, flow))
		return;
	forward = flow->flags & FLOW_FLAG_FORWARD ? flow : other;
	if (forward)
		count_change_FAM(packet, forward == flow ? &key->source : &other_key->source, forward, before);
	if (is_closed(state) == is_closed(before))
		return;
	if (packet->tcp_flags & TCP_SYN)
		count_connection(flow->farm,
				 flow->backend); /* the tuple of a closed connection, reused with the same backend */
	if (!packet->established || (!other && !(flow->flags & FLOW_FLAG_FORWARD)))
		return;
	report_FAM(packet, flow->flags & FLOW_FLAG_FORWARD ? key : other_key, flow->flags & FLOW_FLAG_FORWARD ? flow : other,
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
#ifdef PERSISTENCE
		if (packet->established && flow->flags & FLOW_FLAG_FORWARD &&
		    ((before + phase) ^ (tick + phase)) >> PERSISTENCE_USE_SHIFT)
			use_client_FAM(key, flow->farm, flow->backend, tick);
#endif
	}
	if ((flow->state & (FLOW_STATE_SEEN | revocable)) != FLOW_STATE_SEEN || packet->tcp_flags & (TCP_FIN | TCP_RST))
		update_state_FAM(packet, key, flow);
}

/* The same for a connection that is one way. */
static __always_inline void promote_one_way_FAM(struct packet *packet, struct flow_key_FAM *key, struct flow_FAM *forward)
{
	leave_half_open_FAM(packet, &key->source, forward);
	if (flows_FAM.update(key, forward)) {
		count(packet, COUNTER_EVENT_FLOW_TABLE_FULL);
		return;
	}
	count(packet, COUNTER_EVENT_PROMOTED);
	count_load(forward->farm, forward->backend, LOAD_PROMOTED);
	relieve_pressure(FAMILY_FAM);
	report_FAM(packet, key, forward, EVENT_TYPE_ESTABLISHED);
	embryonic_FAM.delete(key);
	packet->established = true;
}

/* A hit in `embryonic`: promote the connection if both ends have answered; of UDP, also if one has answered twice. False: the
 * entry of the other direction is missing. */
static __always_inline bool check_other_FAM(struct packet *packet, struct flow_key_FAM *key, struct flow_FAM *flow,
					    bool *answered)
{
	bool is_forward = flow->flags & FLOW_FLAG_FORWARD;
	struct flow_key_FAM *other_key;
	struct flow_FAM *other;

	if (is_one_way(flow->flags)) {
		if (continues_one_way(packet, flow->state, flow->last_seen))
			promote_one_way_FAM(packet, key, flow);
		return true;
	}
	if (!is_forward && !(packet->protocol == IPPROTO_UDP && flow->state & FLOW_STATE_SEEN))
		return true;
	other_key = other_key_FAM(flow, key->protocol);
	if (!other_key)
		return false;
	other = embryonic_FAM.lookup(other_key);
	if (!other)
		other = flows_FAM.lookup(other_key);
	if (!other || !is_reply_to_FAM(other, key))
		return !is_forward;
	*answered = other->state & FLOW_STATE_SEEN;
	if (!*answered || is_syn(packet) || (packet->tcp_flags | other->state << 8) & (TCP_RST | FLOW_STATE_RST << 8))
		return true;
	if (is_forward)
		promote_FAM(packet, key, flow, other_key, other);
	else
		promote_FAM(packet, other_key, other, key, flow);
	return true;
}
