/* Backend selection, the parts that do not depend on the address family: hash steps, turns, slots. */
#pragma once

#define GOLDEN_RATIO 0x9e3779b9 /* 2**32 / phi: multiples of it spread evenly over 32 bits */

/* MurmurHash3 (public domain), 32 bits: add one word to a hash. */
static __always_inline u32 mix(u32 hash, u32 word)
{
	word *= 0xcc9e2d51;
	word = word << 15 | word >> 17;
	hash ^= word * 0x1b873593;
	hash = hash << 13 | hash >> 19;
	return hash * 5 + 0xe6546b64;
}

/* The final mix of MurmurHash3. */
static __always_inline u32 avalanche(u32 hash)
{
	hash ^= hash >> 16;
	hash *= 0x85ebca6b;
	hash ^= hash >> 13;
	hash *= 0xc2b2ae35;
	return hash ^ hash >> 16;
}

/* Map `value` to 0 … count-1 without a division. */
static __always_inline u32 scale(u32 value, u32 count)
{
	return (u64)value * count >> 32;
}

/* Round robin: each CPU counts by itself, from an offset of its own, so that CPUs do not select the same backend at once. */
static __always_inline u32 next_turn(u32 farm, u32 slot_count)
{
	u32 *turn = turns.lookup(&farm);

	if (!turn)
		return 0;
	return (*turn)++ + scale(bpf_get_smp_processor_id() * GOLDEN_RATIO, slot_count);
}

static __always_inline u32 backend_of_slot(struct service *service, u32 slot)
{
	u32 index = service->slot_offset + slot;
	u32 number = index / SLOTS_PER_CHUNK;
	struct slot_chunk *chunk = slots.lookup(&number);

	return chunk ? chunk->backend[index % SLOTS_PER_CHUNK] : 0;
}

/* A number that depends on the connection and the attempt, from which the other sources are made. */
static __always_inline u32 spread_attempt(u32 hash, u32 attempt)
{
	return avalanche(hash + attempt * GOLDEN_RATIO);
}

static __always_inline u32 spread_port(u32 spread)
{
	return FIRST_SNAT_PORT + scale(spread, 65536 - FIRST_SNAT_PORT);
}
