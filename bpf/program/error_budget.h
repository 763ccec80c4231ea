/* Rate limit on ICMP errors that xlb originates: MAX_ERRORS_PER_TICK per CPU (RFC 1812 4.3.2.8, RFC 4443 2.4 f). */
#pragma once
#include "parse.h"

static __always_inline bool may_send_error(struct packet *packet)
{
	u32 zero = 0, tick = now_ns(packet) >> TICK_SHIFT;
	struct error_budget *budget = error_budget.lookup(&zero);

	if (!budget)
		return false;
	if (budget->tick != tick) {
		budget->tick = tick;
		budget->sent = 0;
	}
	if (budget->sent >= MAX_ERRORS_PER_TICK)
		return false;
	budget->sent++;
	return true;
}
