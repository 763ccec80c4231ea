/* The listener a packet is for, and the backend of a new connection. ctl/dataplane/flow_hash.py computes the same hashes. */

static __always_inline u32 flow_hash_FAM(struct flow_key_FAM *key, u32 seed)
{
	u32 hash = seed;

#pragma unroll
	for (u32 i = 0; i < WORDS_FAM; i++)
		hash = mix(hash, key->source.word[i]);
#pragma unroll
	for (u32 i = 0; i < WORDS_FAM; i++)
		hash = mix(hash, key->destination.word[i]);
	hash = mix(hash, (u32)ntohs(key->source_port) << 16 | ntohs(key->destination_port));
	return avalanche(mix(hash, key->protocol));
}

static __always_inline u32 address_hash_FAM(struct addr_FAM *address, u32 seed)
{
	u32 hash = seed;

#pragma unroll
	for (u32 i = 0; i < WORDS_FAM; i++)
		hash = mix(hash, address->word[i]);
	return avalanche(hash);
}

static __always_inline u32 client_hash_FAM(struct flow_key_FAM *key, u32 seed)
{
	return address_hash_FAM(&key->source, seed);
}

static __always_inline struct service *find_service_FAM(struct flow_key_FAM *key, struct vip *vip)
{
	struct service_key_FAM exact = {
		.address = key->destination,
		.port = key->destination_port,
		.protocol = key->protocol,
	};
	struct range_key_FAM range = {
		.prefix_length = 8 * (sizeof(range) - sizeof(range.prefix_length) - sizeof(range.zero_after)),
		.protocol = key->protocol,
		.address = key->destination,
		.port = key->destination_port,
	};
	struct service *service = services_FAM.lookup(&exact);

	if (service || !(vip->flags & VIP_FLAG_RANGES))
		return service;
	return ranges_FAM.lookup(&range);
}

/* The id of the backend for a new connection; 0: an empty slot. `hash` is the flow's; slot_count must not be 0. */
static __always_inline u32 select_FAM(struct flow_key_FAM *key, struct service *service, u32 hash, u32 seed)
{
	u32 slot;

	switch (service->scheduler) {
	case SCHEDULER_ROUNDROBIN:
		slot = next_turn(service->farm);
		break;
	case SCHEDULER_SOURCE:
		slot = client_hash_FAM(key, seed);
		break;
	default:
		slot = hash;
	}
	return backend_of_slot(service, slot % service->slot_count);
}
