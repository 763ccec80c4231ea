/* Which backend a client keeps: see affinity.h. */

#ifdef AFFINITY
#define IS_OF_V6_v4 false
#define IS_OF_V6_v6 true

/* Can the listener's packets get to the backend? Only mode ipip crosses address families; a farm may have backends of both. */
static __always_inline bool reaches_FAM(struct service *service, u32 backend_id)
{
	struct backend *backend = backends.lookup(&backend_id);

	return backend && (service->mode == MODE_IPIP || !(backend->flags & BACKEND_FLAG_V6) == !IS_OF_V6_FAM);
}
#endif

#ifdef PERSISTENCE
struct persistent_key_FAM {
	struct addr_FAM client; /* its prefix */
	u32 farm;
};

BPF_TABLE_PINNED("lru_hash", struct persistent_key_FAM, struct persistent, persistent_FAM, MAX_PERSISTENT,
		 PINS "/persistent_FAM");

static __always_inline void persistent_key_of_FAM(struct persistent_key_FAM *persistent, struct flow_key_FAM *key,
						  struct farm_affinity *settings, u32 farm)
{
#pragma unroll
	for (u32 i = 0; i < WORDS_FAM; i++)
		persistent->client.word[i] = key->source.word[i] & settings->mask_FAM[i];
	persistent->farm = farm;
}

/* The client has a new connection with `backend`. */
static __always_inline void remember_client_FAM(struct packet *packet, struct flow_key_FAM *key, u32 farm, u32 backend)
{
	struct farm_affinity *settings = farm_affinity.lookup(&farm);
	u32 tick = now_ns(packet) >> TICK_SHIFT;
	struct persistent created = { .home = backend, .backend = backend, .last_used = tick };
	struct persistent_key_FAM persistent;
	struct persistent *entry;

	if (!settings || !settings->persistence_ticks)
		return;
	persistent_key_of_FAM(&persistent, key, settings, farm);
	entry = persistent_FAM.lookup(&persistent);
	if (!entry || !is_persistent(entry, settings, tick)) {
		persistent_FAM.update(&persistent, &created);
		return;
	}
	if (entry->backend == backend && entry->home == backend) {
		use_persistent(entry, settings, tick);
		return;
	}
	if (entry->home != backend && !(settings->flags & AFFINITY_FLAG_RETURN && has_backend(farm, entry->home)))
		entry->home = backend;
	if (entry->backend != backend)
		entry->last_used = tick; /* the peer gets entries that were used since it got the last ones */
	entry->backend = backend;
	use_persistent(entry, settings, tick);
}

/* An established connection of the client lives; called about once per second for each. An entry that is missing, because the
 * farm had no persistence before or the entry did not reach this node, is made again. */
static __always_inline void use_client_FAM(struct flow_key_FAM *key, u32 farm, u32 backend, u32 tick)
{
	struct farm_affinity *settings = farm_affinity.lookup(&farm);
	struct persistent created = { .home = backend, .backend = backend, .last_used = tick };
	struct persistent_key_FAM persistent;
	struct persistent *entry;

	if (!settings || !settings->persistence_ticks)
		return;
	persistent_key_of_FAM(&persistent, key, settings, farm);
	entry = persistent_FAM.lookup(&persistent);
	if (entry && is_persistent(entry, settings, tick))
		use_persistent(entry, settings, tick);
	else if (is_open(farm, backend))
		persistent_FAM.update(&persistent, &created);
}

/* The backend that the client had last and that takes new connections; 0: none. */
static __always_inline u32 persistent_backend_FAM(struct packet *packet, struct flow_key_FAM *key, struct service *service,
						  struct farm_affinity *settings)
{
	u32 farm = service->farm;
	struct persistent_key_FAM persistent;
	struct persistent *entry;

	if (!settings->persistence_ticks)
		return 0;
	persistent_key_of_FAM(&persistent, key, settings, farm);
	entry = persistent_FAM.lookup(&persistent);
	if (!entry || !is_persistent(entry, settings, now_ns(packet) >> TICK_SHIFT))
		return 0;
	if (is_open(farm, entry->home) && reaches_FAM(service, entry->home))
		return entry->home;
	return is_open(farm, entry->backend) && reaches_FAM(service, entry->backend) ? entry->backend : 0;
}
#endif

#ifdef AFFINITY
/* The backend that a new connection must have; 0: the scheduler chooses. A connection id that names a server comes first: it
 * belongs to a connection that exists, while other clients may share the address it came from. */
static __always_inline u32 affine_backend_FAM(struct packet *packet, struct flow_key_FAM *key, struct service *service,
					      u32 seed)
{
	struct farm_affinity *settings = farm_affinity.lookup(&service->farm);
	u32 backend = 0;

	if (!settings)
		return 0;
#ifdef QUIC
	backend = quic_backend(packet, service, settings, seed);
	if (!reaches_FAM(service, backend))
		backend = 0;
#endif
#ifdef PERSISTENCE
	if (!backend)
		backend = persistent_backend_FAM(packet, key, service, settings);
#endif
	return backend;
}
#endif
