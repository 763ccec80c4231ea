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

/* Count the rounds of a loop. Older kernels, 6.1 among them, take a loop only if a jump leads back to its first instruction, so this ends
 * with one: the kernel removes a jump to the next instruction, and the compiler cannot put its own arithmetic behind it. */
static __always_inline u32 next_round(u32 round)
{
	round++;
	asm volatile("goto +0" : "+r"(round));
	return round;
}

/* Map `value` to 0 … count-1 without a division. */
static __always_inline u32 scale(u32 value, u32 count)
{
	return (u64)value * count >> 32;
}

/* Round robin: all CPUs take turns at one position, so that successive connections get successive slots. */
static __always_inline u32 next_turn(u32 farm)
{
	u64 *turn = rotation.lookup(&farm);

	return turn ? __sync_fetch_and_add(turn, 1) : 0;
}

/* Does the scheduler select the same backend for the same packet, without an entry? */
static __always_inline bool is_hash(u8 scheduler)
{
	return scheduler != SCHEDULER_ROUNDROBIN && scheduler != SCHEDULER_LEASTCONN;
}

static __always_inline u32 backend_at(u32 index)
{
	u32 number = index / SLOTS_PER_CHUNK;
	struct slot_chunk *chunk = slots.lookup(&number);

	return chunk ? chunk->backend[index % SLOTS_PER_CHUNK] : 0;
}

static __always_inline u32 backend_of_slot(struct service *service, u32 slot)
{
	return backend_at(service->slot_offset + slot);
}

/* A number that depends on the connection and the attempt, from which the other sources are made. */
static __always_inline u32 spread_attempt(u32 hash, u32 attempt)
{
	return avalanche(hash + attempt * GOLDEN_RATIO);
}

/* The source ports that replace a client's own port: of its parity, and privileged ones for a privileged one, because servers
 * trust them (RFC 4787 REQ-4 and REQ-3a; NFS). */
static __always_inline void set_port_range(struct port_range *range, u32 client_port)
{
	bool privileged = client_port && client_port < FIRST_SNAT_PORT;

	range->first = privileged ? FIRST_SNAT_PORT - PRIVILEGED_SNAT_PORTS : FIRST_SNAT_PORT;
	range->pairs = (privileged ? PRIVILEGED_SNAT_PORTS : 65536 - FIRST_SNAT_PORT) / 2;
	range->step_mask = privileged ? PRIVILEGED_SNAT_PORTS / 2 - 1 : 0;
	range->spread_mask = ~0 * !privileged;
	range->parity = client_port & 1;
	range->back = privileged;
}

/* The port of an attempt. Privileged ports are few and are tried one after the other, the others at random. `spread` is the
 * attempt's. Without branches on what is in memory, so that the verifier follows one path. */
static __always_inline u32 port_of_attempt(struct port_range *range, u32 hash, u32 spread, u32 attempt)
{
	if (attempt == OTHER_PARITY_ATTEMPT)
		range->parity ^= 1;
	if (attempt == HIGH_PORTS_ATTEMPT) {
		range->first = FIRST_SNAT_PORT;
		range->pairs = (65536 - FIRST_SNAT_PORT) / 2;
		range->step_mask = 0;
		range->spread_mask = ~0;
		range->parity ^= range->back;
	}
	return range->first + 2 * (scale(spread & range->spread_mask, range->pairs) + ((hash + attempt) & range->step_mask)) +
	       range->parity;
}
