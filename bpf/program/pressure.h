/* Are embryonic connections evicted before they can be established? Then round robin and leastconn select by hash.
 *
 * A client whose entry is evicted between its SYN and its ACK is lost unless its backend can be derived from the ACK. A hash
 * can; what depends on turns or loads cannot, and means nothing during a flood of SYNs. Connections that are opened and not
 * established are counted in windows of a second.
 */
#pragma once
#include "maps.h"

#define PRESSURE_WINDOW_SHIFT 4 /* 2**4 ticks: 1.1 s */
#define PRESSURE_HOLD_TICKS 150 /* 10 s: for those who connected under pressure */
#define PRESSURE_LIMIT (MAX_EMBRYONIC / 2)

static __always_inline struct pressure *pressure_of(u32 family)
{
	return pressures.lookup(&family);
}

static __always_inline bool is_pressed(struct packet *packet, u32 family)
{
	struct pressure *pressure = pressure_of(family);

	/* neither 0 nor an old tick is ahead when ticks have passed half their range */
	return pressure && pressure->until - (u32)(now_ns(packet) >> TICK_SHIFT) - 1 < PRESSURE_HOLD_TICKS;
}

/* A connection was opened. CPUs that begin a window at once may miss a few. */
static __always_inline void add_pressure(struct packet *packet, u32 family)
{
	struct pressure *pressure = pressure_of(family);
	u32 tick = now_ns(packet) >> TICK_SHIFT;

	if (!pressure)
		return;
	if (pressure->window != tick >> PRESSURE_WINDOW_SHIFT) {
		pressure->window = tick >> PRESSURE_WINDOW_SHIFT;
		pressure->opened = 0;
	}
	__sync_fetch_and_add(&pressure->opened, 1);
	if (pressure->opened > PRESSURE_LIMIT)
		pressure->until = tick + PRESSURE_HOLD_TICKS;
}

/* A connection was established. */
static __always_inline void relieve_pressure(u32 family)
{
	struct pressure *pressure = pressure_of(family);

	if (pressure && pressure->opened > 0)
		__sync_fetch_and_add(&pressure->opened, -1);
}
