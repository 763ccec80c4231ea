/* The fence: nothing is done in a VIP's name once the lease has run out. */
#pragma once
#include "parse.h"

static __always_inline bool is_fenced(struct packet *packet)
{
	u32 zero = 0;
	struct lease *held = lease.lookup(&zero);

	if (!held)
		return true;
	if (held->deadline_ns == LEASE_FOREVER_NS)
		return false;
	return now_ns(packet) >= held->deadline_ns;
}
