/* Connections of farms and backends: counted when one begins or ends, compared with a limit, and the least of several chosen.
 * Compiled out unless a farm needs it. */
#pragma once
#include "limits.h"

#ifdef LOADS
static __always_inline u32 load_of(struct load *load)
{
	s64 connections = *(volatile s64 *)&load->base + *(volatile u64 *)&load->opened - *(volatile u64 *)&load->closed;

	return connections < 0 ? 0 : connections;
}

static __always_inline bool is_full(u32 backend_id)
{
	struct backend_limits *limits = backend_limits.lookup(&backend_id);
	struct load *load = backend_loads.lookup(&backend_id);

	return limits && load && limits->max_connections && load_of(load) >= limits->max_connections;
}

/* The backend among the candidates that has the least connections for its weight, or with `first` the first one that is not
 * full: choice->backend; 0: all are full. With more than MAX_CANDIDATES backends the candidates are in as many slots from
 * `start`. What the loop has found is in a map, because the verifier would follow different values of variables separately. */
static __always_inline void choose_candidate(struct choice *choice, struct farm_limits *limits)
{
	u32 family = choice->handler == HANDLER_OPEN_V6, listed = limits->candidate_count[family];
	u32 total = listed ?: choice->slot_count, count = total < MAX_CANDIDATES ? total : MAX_CANDIDATES;

	choice->backend = 0;
	if (!total)
		return;
	choice->at = choice->start % total;
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < MAX_CANDIDATES; i++) {
		struct backend_limits *of_backend;
		struct load *load;
		u32 at = choice->at, id;
		u64 next;

		if (i >= count)
			break;
		choice->at = at + 1 < total ? at + 1 : 0;
		id = listed ? limits->candidate[family * MAX_CANDIDATES + at % MAX_CANDIDATES]
			    : backend_at(choice->slot_offset + at);
		of_backend = backend_limits.lookup(&id);
		load = backend_loads.lookup(&id);
		if (!id || !of_backend || !load)
			continue;
		next = load_of(load) + 1;
		if (of_backend->max_connections && next > of_backend->max_connections)
			continue;
		if (choice->backend && (choice->first || next * choice->weight >= choice->load * of_backend->weight))
			continue;
		choice->backend = id;
		choice->weight = of_backend->weight;
		choice->load = next;
	}
}
#endif

/* What happens to a connection; the counters of struct load are in the same order. */
enum { LOAD_OPENED, LOAD_CLOSED, LOAD_PROMOTED };

/* Count it for the farm and the backend: it begins, or seemed to have ended and continues; it ends; it moves to `flows`. */
static __always_inline void count_load(u32 farm, u32 backend, u32 what)
{
#ifdef LOADS
	u64 *of_farm = (u64 *)farm_loads.lookup(&farm), *of_backend = (u64 *)backend_loads.lookup(&backend);

	if (of_farm)
		__sync_fetch_and_add(&of_farm[what], 1);
	if (of_backend)
		__sync_fetch_and_add(&of_backend[what], 1);
#endif
}

#define ALL_FULL (~0U) /* instead of a backend's id */

/* The selected backend, another one if that is full, or ALL_FULL. Of leastconn: the one with the least load, unless the client
 * keeps its backend (`is_affine`).
 *
 * The loop over the candidates is in a program of its own: the verifier would follow it for each path that leads here. That
 * program calls `handler`, the one that runs now, which comes here again and finds the choice made.
 */
static __always_inline u32 with_capacity(struct packet *packet, struct service *service, u32 backend_id, u32 hash,
					 bool is_affine, u32 handler)
{
#ifdef LOADS
	u32 zero = 0;
	struct farm_limits *limits = farm_limits.lookup(&service->farm);
	bool least = service->scheduler == SCHEDULER_LEASTCONN && !is_affine;
	struct choice *choice;

	if (!least && !(limits && limits->backends_limited && is_full(backend_id)))
		return backend_id;
	choice = choices.lookup(&zero);
	if (!choice)
		return 0;
	if (choice->made)
		return choice->backend ?: ALL_FULL;
	choice->farm = service->farm;
	choice->slot_offset = service->slot_offset;
	choice->slot_count = service->slot_count;
	choice->start = hash;
	choice->first = !least;
	choice->handler = handler;
	handlers.call(packet->context, HANDLER_CHOOSE);
	return 0;
#else
	return backend_id;
#endif
}

/* A packet begins: nothing is chosen for it. */
static __always_inline void reset_choice(void)
{
#ifdef LOADS
	u32 zero = 0;
	struct choice *choice = choices.lookup(&zero);

	if (choice)
		choice->made = false;
#endif
}

/* Is this the second call of a handler for the same packet? */
static __always_inline bool is_called_again(void)
{
#ifdef LOADS
	u32 zero = 0;
	struct choice *choice = choices.lookup(&zero);

	return choice && choice->made;
#else
	return false;
#endif
}

#ifdef HALF_OPEN
/* Empty the windows that have begun since the last call. */
static __always_inline void advance_windows(struct half_open *counts, u32 window)
{
	u32 passed = window - counts->window;

	if (!passed)
		return;
#pragma unroll
	for (u32 i = 1; i <= HALF_OPEN_WINDOWS; i++) /* where `passed` is at least i */
		counts->opened[(counts->window + i) % HALF_OPEN_WINDOWS] &= ((s64)passed - i) >> 63;
	counts->window = window;
}

static __always_inline u32 window_of(struct packet *packet, struct farm_limits *limits)
{
	return (u32)(now_ns(packet) >> TICK_SHIFT) / (limits->half_open_ticks ?: 1);
}
#endif
