/* May this client open a connection now? Lists, rate, half-open connections, and the connections of the farm.
 *
 * Hooks: admit_FAM before a backend is selected, and what counts half-open connections where they begin and end.
 */

#if defined(RATE) || defined(HALF_OPEN)
/* The client that an address belongs to. Without branches: the verifier would follow each way through them. */
static __always_inline void set_client_FAM(struct client_key_FAM *client, u32 farm, struct addr_FAM *address,
					   struct farm_limits *limits)
{
	client->farm = farm;
#pragma unroll
	for (u32 i = 0; i < WORDS_FAM; i++)
		client->prefix.word[i] = address->word[i] & limits->client_mask_FAM.word[i];
}
#endif

#ifdef LISTS
static __always_inline bool is_listed_FAM(u32 list, struct addr_FAM *address)
{
	struct prefix_key_FAM key = {
		.prefix_length = 8 * (sizeof(key) - sizeof(key.prefix_length)),
		.list = list,
		.address = *address,
	};

	return prefixes_FAM.lookup(&key);
}
#endif

#ifdef RATE
/* A token bucket that holds the connections of RATE_BURST_NS, as one number: when it will be full again (the generic cell rate
 * algorithm, ITU-T I.371). An addition is atomic while the bucket is not full; on a full one CPUs that race count as one. */
static __always_inline bool is_too_fast_FAM(struct packet *packet, struct client_key_FAM *client, u32 interval_ns)
{
	u64 now = now_ns(packet), full_at = now + interval_ns, *found = rates_FAM.lookup(client);

	if (!found) {
		rates_FAM.update(client, &full_at);
		return false;
	}
	if (*found <= now) {
		*found = full_at;
		return false;
	}
	if (*found - now > RATE_BURST_NS - interval_ns)
		return true;
	__sync_fetch_and_add(found, interval_ns);
	return false;
}
#endif

#ifdef HALF_OPEN
static __always_inline bool has_many_half_open_FAM(struct packet *packet, struct client_key_FAM *client,
						   struct farm_limits *limits)
{
	struct half_open first = {}, *counts = half_open_FAM.lookup(client);
	u32 sum = 0;

	if (!counts) {
		first.window = window_of(packet, limits);
		half_open_FAM.insert(client, &first);
		return false;
	}
	advance_windows(counts, window_of(packet, limits));
#pragma unroll
	for (u32 i = 0; i < HALF_OPEN_WINDOWS; i++)
		sum += counts->opened[i] & ~((s32)counts->opened[i] >> 31); /* below 0 after a race */
	return sum >= limits->max_half_open;
}
#endif

/* The client whose half-open connections will include the next one that is opened; none: the connection is not a new one. */
static __always_inline void set_opening_FAM(void *client)
{
#ifdef HALF_OPEN
	u32 zero = 0;
	struct client_key_FAM *opening = opening_FAM.lookup(&zero);

	if (!opening)
		return;
	if (client)
		*opening = *(struct client_key_FAM *)client;
	else
		opening->farm = 0;
#endif
}

/* A connection was opened: its client has one more that is half-open. `flow` is its forward entry. */
static __always_inline void count_half_open_FAM(struct flow_FAM *flow)
{
#ifdef HALF_OPEN
	u32 zero = 0;
	struct client_key_FAM *opening = opening_FAM.lookup(&zero);
	struct half_open *counts;

	if (!opening || !opening->farm)
		return;
	counts = half_open_FAM.lookup(opening);
	if (!counts)
		return;
	__sync_fetch_and_add(&counts->opened[counts->window % HALF_OPEN_WINDOWS], 1);
	flow->state |= FLOW_STATE_COUNTED;
#endif
}

/* The connection is half-open no more: answered, or over. `client_address` is that of its client. */
static __always_inline void leave_half_open_FAM(struct packet *packet, struct addr_FAM *client_address, struct flow_FAM *flow)
{
#ifdef HALF_OPEN
	u32 farm = flow->farm;
	struct farm_limits *limits;
	struct client_key_FAM client = {};
	struct half_open *counts;

	if (!(flow->state & FLOW_STATE_COUNTED))
		return;
	flow->state &= ~FLOW_STATE_COUNTED;
	limits = farm_limits.lookup(&farm);
	if (!limits)
		return;
	set_client_FAM(&client, farm, client_address, limits);
	counts = half_open_FAM.lookup(&client);
	if (!counts)
		return;
	advance_windows(counts, window_of(packet, limits));
#pragma unroll
	for (u32 i = 0; i < HALF_OPEN_WINDOWS; i++) { /* probably one of the last opened */
		u32 *opened = &counts->opened[(counts->window - i) % HALF_OPEN_WINDOWS];

		if (*opened) {
			__sync_fetch_and_add(opened, -1);
			return;
		}
	}
#endif
}

/* CONTINUE, or the verdict on the first packet of a connection. `old`: the forward entry that its tuple has already: what is
 * open continues. */
static __always_inline u32 admit_FAM(struct packet *packet, struct flow_key_FAM *key, struct flow_FAM *old)
{
#ifdef LIMITS
	u32 zero = 0, farm;
	struct connection_FAM *connection = scratch_FAM.lookup(&zero);
	struct farm_limits *limits;

	set_opening_FAM(NULL);
	if (!connection || (old && !is_closed(old->state)))
		return CONTINUE;
	farm = packet->farm = connection->service.farm;
	observe_farm(farm, 0);
	limits = farm_limits.lookup(&farm);
	if (!limits)
		return CONTINUE;
#ifdef LISTS
	if ((limits->deny && is_listed_FAM(limits->deny, &key->source)) ||
	    (limits->allow && !is_listed_FAM(limits->allow, &key->source)))
		return COUNTER_DROP_DENIED;
#endif
#ifdef LOADS
	if (limits->max_connections) {
		struct load *load = farm_loads.lookup(&farm);

		if (load && load_of(load) >= limits->max_connections)
			return COUNTER_DROP_FARM_FULL;
	}
#endif
#if defined(RATE) || defined(HALF_OPEN)
	if (limits->rate_interval_ns || limits->max_half_open) {
		struct client_key_FAM client = {};

		set_client_FAM(&client, farm, &key->source, limits);
#ifdef HALF_OPEN
		if (limits->max_half_open) {
			if (has_many_half_open_FAM(packet, &client, limits))
				return COUNTER_DROP_HALF_OPEN;
			set_opening_FAM(&client);
		}
#endif
#ifdef RATE
		if (limits->rate_interval_ns && !is_called_again() &&
		    is_too_fast_FAM(packet, &client, limits->rate_interval_ns))
			return COUNTER_DROP_RATE;
#endif
	}
#endif
#endif
	return CONTINUE;
}
