/* What a step returns: a verdict (the number of a counter, see COUNTERS in bpf/constants.py) or CONTINUE. */
#pragma once

#define CONTINUE COUNTER_COUNT   /* no verdict yet: take the next step */
#define KEEP (COUNTER_COUNT + 1) /* the same, and what there is stays as it is */

static __always_inline bool is_pass(u32 verdict)
{
	return verdict < FIRST_FORWARD;
}

static __always_inline bool is_drop(u32 verdict)
{
	return verdict >= FIRST_DROP && verdict < FIRST_EVENT;
}
