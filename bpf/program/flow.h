/* Predicates on a flow's flags and state. */
#pragma once
#include "parse.h"

static __always_inline bool is_closed(u8 state)
{
	const u8 both = FLOW_STATE_FIN_HERE | FLOW_STATE_FIN_THERE;

	return state & FLOW_STATE_RST || (state & both) == both;
}

/* A client reuses the tuple of a closed connection for a new one. */
static __always_inline bool is_reopened(struct packet *packet, u8 flags, u8 state)
{
	return is_syn(packet) && flags & FLOW_FLAG_FORWARD && is_closed(state);
}
