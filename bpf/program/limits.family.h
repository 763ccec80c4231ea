/* Maps of limits keyed by address, once per family. */

#ifdef LISTS
/* An address matches a list if one of its prefixes covers it. The id of a list follows from its content. */
struct prefix_key_FAM {
	u32 prefix_length; /* bits after this word that are compared: those of `list` and of the prefix */
	u32 list;
	struct addr_FAM address;
};

BPF_TABLE_PINNED("lpm_trie", struct prefix_key_FAM, u8, prefixes_FAM, MAX_PREFIXES, PINS "/prefixes_FAM", BPF_F_NO_PREALLOC);
#endif

#if defined(RATE) || defined(HALF_OPEN)
struct client_key_FAM {
	u32 farm;
	struct addr_FAM prefix; /* the other bits are 0 */
};
#endif

#ifdef RATE
/* When the bucket of a client prefix will be full again, in ns of CLOCK_MONOTONIC. */
BPF_TABLE_PINNED("lru_hash", struct client_key_FAM, u64, rates_FAM, MAX_CLIENTS, PINS "/rates_FAM");
#endif

#ifdef HALF_OPEN
BPF_TABLE_PINNED("lru_hash", struct client_key_FAM, struct half_open, half_open_FAM, MAX_CLIENTS, PINS "/half_open_FAM");
/* The client of the connection that is being opened; farm 0: none. Holds nothing between packets. */
BPF_TABLE_PINNED("percpu_array", u32, struct client_key_FAM, opening_FAM, 1, PINS "/opening_FAM");
#endif
