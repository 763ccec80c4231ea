/* Keys and values of the pinned maps: defined once here, read by Python from the layout that clang reports.
 *
 * Addresses and ports are in network byte order, everything else in host byte order. A struct whose name ends in FAM is
 * defined once per address family by the flattener (flatten.py). Sizes are asserted because padding would become part of
 * a key. Struct and field names are part of a map's fingerprint: renaming one loses the map's entries on an upgrade.
 */
#pragma once

/* --- the node ---------------------------------------------------------------------------------------------- */

/* The fence: xlb acts for its VIPs only while CLOCK_MONOTONIC is before deadline_ns. */
struct lease {
	u64 deadline_ns;
	u64 epoch;
};

struct globals {
	u32 next_hop_generation; /* incremented on each neighbour, route or link event */
	u32 hash_seed;           /* one per cluster: both nodes compute the same slots */
};

/* What a CPU knows of the time; see read_clock. */
struct clock {
	u64 jiffy; /* in which it was read */
	u64 coarse_ns;
};

/* How often flows with the same hash have changed; see recent.family.h. */
struct change {
	u32 by_program;
	u32 by_daemon;
};

struct counter {
	u64 packets;
	u64 bytes;
};

struct traffic {
	u64 packets_in; /* from clients */
	u64 bytes_in;
	u64 packets_out; /* from backends */
	u64 bytes_out;
	u64 connections; /* opened since the map was created */
	u64 drops;
};

/* --- farms and backends ------------------------------------------------------------------------------------ */

struct vip {
	u32 flags; /* VIP_* */
};

/* A listener: one value per (VIP, port, protocol), replaced as a whole, so that a packet sees the old or the new one. */
struct service {
	u32 farm;
	u32 slot_offset;        /* first slot, a multiple of SLOTS_PER_CHUNK */
	u32 slot_count;         /* 0: no backend may take new connections */
	u8 mode;                /* MODE_* */
	u8 scheduler;           /* SCHEDULER_* */
	__be16 port_first;      /* first port of the listener; the backend's port has the same offset */
	__be32 snat_address[4]; /* IPv4 uses the first word */
};
_Static_assert(sizeof(struct service) == 32, "service");

struct slot_chunk {
	u32 backend[SLOTS_PER_CHUNK];
};

struct backend {
	__be32 address[4]; /* IPv4 uses the first word */
	__be16 port;
	u16 flags; /* BACKEND_FLAG_* */
};
_Static_assert(sizeof(struct backend) == 20, "backend");
_Static_assert(MAX_FARMS <= 65536 && MAX_BACKENDS <= 65536, "struct flow has 16 bits for a farm's and a backend's id");

/* The address of this node that is the source of packets to backends in mode ipip; all zero: none. */
struct tunnel_source {
	__be32 address[4]; /* IPv4 uses the first word */
};

/* A service of backends: what replies to clients look like. */
struct server {
	u32 flags; /* SERVER_FLAG_* */
};

/* Per farm; read only when a connection is opened. */
struct farm_settings {
	u32 flags;         /* FARM_FLAG_* */
	u32 snat_count_v4; /* addresses that backends see; 0 or 1: the service's alone */
	u32 snat_count_v6;
	__be32 snat_v4_address[MAX_SNAT_ADDRESSES]; /* the first address is the service's */
	__be32 snat_v6_address[4 * MAX_SNAT_ADDRESSES];
};
_Static_assert(sizeof(struct farm_settings) == 12 + 20 * MAX_SNAT_ADDRESSES, "farm_settings");

/* Embryonic connections of a family: opened and not established in this window, and until when there are too many. */
struct pressure {
	s64 opened;
	u32 window; /* ticks >> PRESSURE_WINDOW_SHIFT */
	u32 until;  /* tick */
};

/* Answers that a CPU has originated in the current tick: entry 0 counts TCP resets, entry 1 ICMP errors. */
struct error_budget {
	u32 tick; /* see TICK_SHIFT */
	u32 sent;
};
_Static_assert(sizeof(struct error_budget) == 8, "error_budget");

/* Source ports of one parity that a connection tries: see set_port_range. */
struct port_range {
	u32 first;
	u32 pairs;
	u32 step_mask;
	u32 spread_mask;
	u32 parity;
	u32 back; /* the high ports have the client's parity again */
};

/* --- per address family ------------------------------------------------------------------------------------ */

#define WORDS_v4 1
#define WORDS_v6 4
#define RECENT_SPARE_v4 0
#define RECENT_SPARE_v6 16
#include "abi.family.h"
_Static_assert(sizeof(struct flow_key_v4) == 16, "flow_key_v4");
_Static_assert(sizeof(struct flow_key_v6) == 40, "flow_key_v6");
_Static_assert(sizeof(struct flow_v4) == 48, "flow_v4");
_Static_assert(sizeof(struct flow_v6) == 72, "flow_v6");
_Static_assert(sizeof(struct recent_v4) == 64, "recent_v4");
_Static_assert(sizeof(struct recent_v6) == 128, "recent_v6");
_Static_assert(sizeof(struct flow_event_v4) == 72, "flow_event_v4");
_Static_assert(sizeof(struct flow_event_v6) == 120, "flow_event_v6");
