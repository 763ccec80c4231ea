/* Fragments follow the flow of their datagram, in both directions.
 *
 * Only the first fragment has ports. It is forwarded as a whole packet would be, and leaves its rewrite in `fragments`, keyed
 * by source, destination, identification and protocol. Later fragments are rewritten by that entry: addresses only, because
 * the checksum is in the first one. A later fragment that arrives before the first has no entry: for a VIP it is dropped
 * unless the kernel may have it, and the sender repeats the datagram. Entries are valid for FRAGMENT_TICKS, as long as a host
 * waits for missing fragments (RFC 791, RFC 8200); the map evicts the oldest.
 */

/* Turn a packet's key into that of its fragments: the identification takes the place of the ports. */
static __always_inline void make_fragment_key_FAM(struct packet *packet, struct flow_key_FAM *key)
{
	__builtin_memcpy(&key->source_port, &packet->fragment_id, sizeof(packet->fragment_id));
	key->protocol = FRAGMENT_PROTOCOL_FAM(key->protocol);
}

/* The first fragment is forwarded by `flow`: so are those that follow. */
static __always_inline void remember_fragments_FAM(struct packet *packet, struct flow_key_FAM *key, struct flow_FAM *flow)
{
	make_fragment_key_FAM(packet, key);
	fragments_FAM.update(key, flow);
}

/* The first fragment belongs to the kernel: so do those that follow, although they may look like replies. */
static __always_inline void remember_kernel_fragments_FAM(struct packet *packet, struct flow_key_FAM *key)
{
	u32 zero = 0;
	struct connection_FAM *scratch = scratch_FAM.lookup(&zero);

	if (!scratch)
		return;
	__builtin_memset(&scratch->forward, 0, sizeof(scratch->forward));
	scratch->forward.last_seen = now_ns(packet) >> TICK_SHIFT;
	make_fragment_key_FAM(packet, key);
	fragments_FAM.update(key, &scratch->forward);
}

/* The entry that the first fragment left; NULL: none, or too old to be of the same datagram. */
static __always_inline struct flow_FAM *find_fragment_FAM(struct packet *packet, struct flow_key_FAM *key)
{
	u8 protocol = key->protocol;
	struct flow_FAM *flow;

	make_fragment_key_FAM(packet, key);
	flow = fragments_FAM.lookup(key);
	key->protocol = protocol;
	key->source_port = key->destination_port = 0;
	if (!flow || (u32)(now_ns(packet) >> TICK_SHIFT) - flow->last_seen > FRAGMENT_TICKS)
		return NULL;
	return flow;
}
