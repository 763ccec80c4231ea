/* Copies of the entries of `flows` that packets used a moment ago, one cache line each (IPv6: two).
 *
 * Of many flows, a packet waits for memory and not for instructions: an entry of a hash map is three lines that are read one
 * after the other, most of them far away. A copy is one, at a place that follows from the key. Each CPU has a part of the map,
 * so that nothing is written by two.
 *
 * `flows` remains the truth. A copy is used for RECENT_TICKS; then a packet takes the long path, which writes the time of the
 * flow's last packet, reports the flow to the peer if that is due, and copies it again. So `last_seen` of an established flow
 * may be RECENT_TICKS older than its last packet. A change of a flow ends its copies on all CPUs: it increments a number in
 * `changes`, which a copy has from the moment before its flow was read. Flows whose hashes share a number lose a copy too.
 *
 * Only a flow whose packets change nothing is copied, and a packet that changes something uses no copy.
 */

static __always_inline u64 place_hash_FAM(struct flow_key_FAM *key)
{
	u64 hash = (u64)key->source.word[WORDS_FAM - 1] << 32 | *(word *)&key->source_port;

#pragma unroll
	for (u32 i = 0; i < WORDS_FAM; i++) {
		u64 other = i + 1 < WORDS_FAM ? key->source.word[i] : 0;

		hash = (hash ^ (other << 32 | key->destination.word[i])) * PLACE_FACTOR;
		hash ^= hash >> 32;
	}
	return hash * PLACE_FACTOR;
}

/* How often flows with this hash have changed, as a copy's key has it: in the three bytes after the protocol. */
static __always_inline u32 changes_of_FAM(u64 hash)
{
	u32 index = hash >> 32 & (CHANGE_NUMBERS - 1);
	struct change *change = changes.lookup(&index);
	u64 both;

	if (!change)
		return 0;
	both = *(volatile u64 *)change;
	return htonl((u32)(both + (both >> 32)) & 0xffffff);
}

/* The flow with this key, in `flows`, has changed. */
static __always_inline void end_copies_FAM(struct flow_key_FAM *key)
{
	u32 index = place_hash_FAM(key) >> 32 & (CHANGE_NUMBERS - 1);
	struct change *change = changes.lookup(&index);

	if (change)
		__sync_fetch_and_add(&change->by_program, 1);
}

/* Where this CPU has the copy of a flow, if it has one. */
static __always_inline struct recent_FAM *copy_at_FAM(u64 hash)
{
	u32 index = hash >> (64 - RECENT_SHIFT);

	if (RECENT_PARTS > 1)
		index |= (bpf_get_smp_processor_id() & (RECENT_PARTS - 1)) << RECENT_SHIFT;
	return recent_FAM.lookup(&index);
}

static __always_inline bool is_same_address_FAM(struct addr_FAM *one, struct addr_FAM *other)
{
	u32 difference = 0;

#pragma unroll
	for (u32 i = 0; i < WORDS_FAM; i++)
		difference |= one->word[i] ^ other->word[i];
	return !difference;
}

/* Is it the copy of this flow, and may this packet use it? */
static __always_inline bool is_usable_FAM(struct packet *packet, struct recent_FAM *copy, struct flow_key_FAM *key, u32 number)
{
	u32 zero = 0, difference = 0;
	struct globals *global = globals.lookup(&zero);

#pragma unroll
	for (u32 i = 0; i < sizeof(*key) / sizeof(word) - 1; i++)
		difference |= ((word *)&copy->key)[i] ^ ((word *)key)[i];
	difference |= *(word *)&copy->key.protocol ^ (*(word *)&key->protocol | number);
	return !difference && age_of(packet, copy->flow.last_seen) < RECENT_TICKS && global && global->next_hop_generation &&
	       copy->flow.next_hop_generation == global->next_hop_generation && packet->ip_bytes <= copy->flow.mtu &&
	       !(packet->tcp_flags & (TCP_FIN | TCP_RST));
}

/* A packet of the flow was forwarded: copy it, unless a copy of another flow is in its place that may still be used. */
static __always_inline void copy_flow_FAM(struct packet *packet, struct recent_FAM *copy, struct flow_key_FAM *key, u32 number,
					  struct flow_FAM *flow)
{
	const u8 revocable = FLOW_STATE_RST | FLOW_STATE_FIN_HERE;

	bool is_same = is_same_address_FAM(&copy->key.source, &key->source) &&
		       *(word *)&copy->key.source_port == *(word *)&key->source_port;

	if (!is_same && age_of(packet, copy->flow.last_seen) < RECENT_TICKS)
		return;
	if ((flow->state & (FLOW_STATE_SEEN | revocable)) != FLOW_STATE_SEEN || flow->flags & FLOW_FLAG_TOA)
		return;
	copy->key = *key;
	*(word *)&copy->key.protocol |= number;
	copy->flow = *flow;
}
