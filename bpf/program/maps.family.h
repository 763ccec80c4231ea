/* Maps keyed by address, once per family.
 *
 * A new connection starts in `embryonic`, which evicts the least recently used entry when full. Once its client has
 * answered a reply it is established and moves to `flows`, which never evicts. A flood of SYNs or spoofed datagrams can
 * therefore evict embryonic connections only.
 */
BPF_TABLE_PINNED("hash", struct vip_key_FAM, struct vip, vips_FAM, MAX_VIPS, PINS "/vips_FAM");
BPF_TABLE_PINNED("hash", struct service_key_FAM, struct service, services_FAM, MAX_SERVICES, PINS "/services_FAM");
BPF_TABLE_PINNED("lpm_trie", struct range_key_FAM, struct service, ranges_FAM, MAX_PORT_RANGES, PINS "/ranges_FAM",
		 BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("hash", struct member_key_FAM, u32, members_FAM, MAX_BACKENDS, PINS "/members_FAM", BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("hash", struct flow_key_FAM, struct flow_FAM, flows_FAM, 2 * MAX_FLOWS, PINS "/flows_FAM", BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("lru_hash", struct flow_key_FAM, struct flow_FAM, embryonic_FAM, 2 * MAX_EMBRYONIC, PINS "/embryonic_FAM");
/* Copies of entries of `flows`, a part for each CPU. Mapped, so that each begins with a cache line. */
BPF_TABLE_PINNED("array", u32, struct recent_FAM, recent_FAM, RECENT_PARTS << RECENT_SHIFT, PINS "/recent_FAM", BPF_F_MMAPABLE);
/* The addresses and ports of backends. Port 0: the flags of all services of the host. Ranges as in `ranges`. */
BPF_TABLE_PINNED("hash", struct service_key_FAM, struct server, servers_FAM, MAX_SERVERS, PINS "/servers_FAM",
		 BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("lpm_trie", struct range_key_FAM, struct server, server_ranges_FAM, MAX_SERVERS, PINS "/server_ranges_FAM",
		 BPF_F_NO_PREALLOC);
/* Connections to a backend's service that came through this node without a VIP; keyed by the packets of their clients. */
BPF_TABLE_PINNED("lru_hash", struct flow_key_FAM, u32, direct_FAM, MAX_DIRECT, PINS "/direct_FAM");
/* The rewrite of a datagram's fragments; the identification takes the place of the ports in the key. farm 0: the kernel's. */
BPF_TABLE_PINNED("lru_hash", struct flow_key_FAM, struct flow_FAM, fragments_FAM, MAX_FRAGMENTED, PINS "/fragments_FAM");
/* Scratch space for a new connection, which is too large for the stack; holds nothing between packets. */
BPF_TABLE_PINNED("percpu_array", u32, struct connection_FAM, scratch_FAM, 1, PINS "/scratch_FAM");
#ifdef REPLICATION
RING_PINNED(struct flow_event_FAM, events_FAM, RING_BYTES, PINS "/events_FAM");
#endif
