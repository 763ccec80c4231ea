/* The fence: xlb acts for a VIP only while this node holds the lease. Each packet is checked once, after its flow or VIP is
 * found and before anything is changed.
 */
#pragma once
#include "parse.h"

/* CONTINUE: the lease is open. Otherwise drop_fenced, or pass_handed_over just after the VIPs were handed over to the peer. */
static __always_inline u32 check_lease(struct packet *packet)
{
	u32 zero = 0;
	struct lease *held = lease.lookup(&zero);
	u64 deadline_ns;

	if (!held)
		return COUNTER_DROP_FENCED;
	deadline_ns = *(volatile u64 *)&held->deadline_ns; /* one read: the daemon may change it meanwhile */
	if (deadline_ns == LEASE_FOREVER_NS || is_before(packet, deadline_ns))
		return CONTINUE;
	return deadline_ns == LEASE_HANDED_OVER_NS ? COUNTER_PASS_HANDED_OVER : COUNTER_DROP_FENCED;
}

static __always_inline bool is_fenced(struct packet *packet)
{
	return check_lease(packet) != CONTINUE;
}
