/* What limits new connections: settings, lists, loads and rates. Each part is compiled in only where a farm needs it.
 *
 * A load is the number of connections that have not ended. XDP counts changes, the daemon's sweep counts the connections
 * themselves and corrects `base`, through mapped memory, so that neither overwrites what the other writes.
 */
#pragma once
#include "maps.h"

#if defined(LISTS) || defined(RATE) || defined(HALF_OPEN) || defined(LOADS)
#define LIMITS 1

/* Per farm; read only when a connection is opened. 0: no limit, no list. */
struct farm_limits {
	u32 max_connections;
	u32 max_half_open;    /* of a client prefix */
	u32 rate_interval_ns; /* between two connections of a client prefix, in the long run */
	u32 half_open_ticks;  /* of one of HALF_OPEN_WINDOWS: together as long as a connection may be half-open */
	u32 allow;            /* id of a list in `prefixes` */
	u32 deny;
	struct addr_v4 client_mask_v4; /* the bits of an address that make a client */
	struct addr_v6 client_mask_v6;
	u32 backends_limited;              /* some backend has max_connections */
	u32 candidate_count[2];            /* per family of the VIP: backends to choose from; 0: those of the slots */
	u32 candidate[2 * MAX_CANDIDATES]; /* their ids, each once per family */
};
_Static_assert(sizeof(struct farm_limits) == 56 + 8 * MAX_CANDIDATES, "farm_limits");

BPF_TABLE_PINNED("array", u32, struct farm_limits, farm_limits, MAX_FARMS, PINS "/farm_limits");
#endif

#ifdef LOADS
/* The load is base + opened - closed. */
struct load {
	u64 opened;
	u64 closed;
	u64 promoted; /* moved to `flows`, where a sweep may miss them */
	s64 base;     /* written by the daemon */
};

struct backend_limits {
	u32 weight;          /* of leastconn, above 0 */
	u32 max_connections; /* 0: no limit */
};

/* What a backend is chosen from, and the best candidate so far; holds nothing between packets. */
struct choice {
	u64 load;    /* of the best, with one more connection */
	u32 backend; /* its id; 0: all are full */
	u32 weight;
	u32 at; /* place of the next candidate */
	u32 farm;
	u32 slot_offset;
	u32 slot_count;
	u32 start;  /* place of the first candidate, before it is scaled */
	u8 first;   /* the first that is not full, not the least loaded */
	u8 handler; /* HANDLER_* that asks */
	u8 made;
	u8 zero;
};

BPF_TABLE_PINNED("percpu_array", u32, struct choice, choices, 1, PINS "/choices");
BPF_TABLE_PINNED("array", u32, struct load, farm_loads, MAX_FARMS, PINS "/farm_loads", BPF_F_MMAPABLE);
BPF_TABLE_PINNED("array", u32, struct load, backend_loads, MAX_BACKENDS, PINS "/backend_loads", BPF_F_MMAPABLE);
BPF_TABLE_PINNED("array", u32, struct backend_limits, backend_limits, MAX_BACKENDS, PINS "/backend_limits");
#endif

#ifdef HALF_OPEN
/* Connections of a client prefix that were opened in each of the last windows and are still half-open. What is not counted
 * off, because its entry was evicted, goes with its window. */
struct half_open {
	u32 window; /* number of the present one */
	u32 opened[HALF_OPEN_WINDOWS];
};
#endif

#include "limits.family.h"
