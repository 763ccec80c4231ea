/* The pinned maps. PINS is the bpffs directory, MAX_FLOWS the node's max_flows (connections: two entries each). */
#pragma once
#include "abi.h"

BPF_TABLE_PINNED("array", u32, struct lease, lease, 1, PINS "/lease");
BPF_TABLE_PINNED("array", u32, struct globals, globals, 1, PINS "/globals");
BPF_TABLE_PINNED("percpu_array", u32, struct clock, clocks, 1, PINS "/clocks");
BPF_TABLE_PINNED("array", u32, struct change, changes, CHANGE_NUMBERS, PINS "/changes", BPF_F_MMAPABLE);
BPF_TABLE_PINNED("percpu_array", u32, struct counter, counters, COUNTER_COUNT, PINS "/counters");
BPF_TABLE_PINNED("percpu_array", u32, struct traffic, farm_traffic, MAX_FARMS, PINS "/farm_traffic");
BPF_TABLE_PINNED("percpu_array", u32, struct traffic, backend_traffic, MAX_BACKENDS, PINS "/backend_traffic");
BPF_TABLE_PINNED("array", u32, u64, rotation, MAX_FARMS, PINS "/rotation");
BPF_TABLE_PINNED("array", u32, struct pressure, pressures, 2, PINS "/pressures");
BPF_TABLE_PINNED("percpu_array", u32, struct error_budget, error_budget, 2, PINS "/error_budget");
BPF_TABLE_PINNED("array", u32, struct farm_settings, farm_settings, MAX_FARMS, PINS "/farm_settings");
BPF_TABLE_PINNED("array", u32, struct slot_chunk, slots, MAX_SLOT_CHUNKS, PINS "/slots");
BPF_TABLE_PINNED("array", u32, struct backend, backends, MAX_BACKENDS, PINS "/backends");
/* The programs of HANDLER_*. It belongs to one entry program: a replaced one keeps its own until no interface has it. */
BPF_TABLE_PINNED("prog", u32, u32, handlers, HANDLER_COUNT, PINS "/handlers");

#ifdef TEST_CLOCK
BPF_TABLE_PINNED("array", u32, u64, test_clock, 1, PINS "/test_clock");
#endif

#ifdef IPIP
BPF_TABLE_PINNED("array", u32, struct tunnel_source, tunnel_sources, 2, PINS "/tunnel_sources"); /* IPv4, IPv6 */
#endif

#if defined(REPLICATION) || defined(CAPTURE)
/* bcc has a macro for ring buffers and one for pinned maps, but none for a pinned ring; its rewriter looks at the members. */
#define RING_PINNED(RECORD, NAME, BYTES, PATH)                                                                                 \
	struct NAME##_table_t {                                                                                                \
		int key;                                                                                                       \
		RECORD leaf;                                                                                                   \
		int (*ringbuf_output)(void *, u64, u64);                                                                       \
		void *(*ringbuf_reserve)(u64);                                                                                 \
		void (*ringbuf_discard)(void *, u64);                                                                          \
		void (*ringbuf_submit)(void *, u64);                                                                           \
		u32 max_entries;                                                                                               \
	};                                                                                                                     \
	__attribute__((section("maps/ringbuf:" PATH))) struct NAME##_table_t NAME = { .max_entries = (BYTES) }
#endif

#include "maps.family.h"
