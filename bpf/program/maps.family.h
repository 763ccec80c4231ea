/* Tables keyed by address, once per family.
 *
 * A new connection starts in `embryonic`, which evicts its oldest when full, and moves to `flows`, which never evicts,
 * once its client has answered a reply. So a flood of SYNs or spoofed datagrams can push out only its like.
 */
BPF_TABLE_PINNED("hash", struct vip_key_FAM, struct vip, vips_FAM, MAX_VIPS, PINS "/vips_FAM");
BPF_TABLE_PINNED("hash", struct service_key_FAM, struct service, services_FAM, MAX_SERVICES, PINS "/services_FAM");
BPF_TABLE_PINNED("lpm_trie", struct range_key_FAM, struct service, ranges_FAM, MAX_PORT_RANGES, PINS "/ranges_FAM",
		 BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("hash", struct flow_key_FAM, struct flow_FAM, flows_FAM, 2 * MAX_FLOWS, PINS "/flows_FAM", BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("lru_hash", struct flow_key_FAM, struct flow_FAM, embryonic_FAM, 2 * MAX_EMBRYONIC, PINS "/embryonic_FAM");
/* Room for one connection in the making, which the stack does not have; empty between packets. */
BPF_TABLE_PINNED("percpu_array", u32, struct pair_FAM, new_pair_FAM, 1, PINS "/new_pair_FAM");
#ifdef REPLICATION
RING_PINNED(struct flow_event_FAM, events_FAM, RING_BYTES, PINS "/events_FAM");
#endif
