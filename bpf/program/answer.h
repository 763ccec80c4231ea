/* Which packets are answered when they are dropped, with what, and how many of them per tick. answer.family.h does it. */
#pragma once
#include "parse.h"
#include "fence.h"

/* What the sender of a dropped packet gets. */
enum answer {
	ANSWER_NOTHING,
	ANSWER_RESET,
	ANSWER_NO_PORT,
	ANSWER_NO_ROUTE,
	ANSWER_TOO_BIG,
	ANSWER_TIME_EXCEEDED,
};

/* Resets and ICMP errors have a share each (RFC 1812 4.3.2.8, RFC 4443 2.4 f): neither flood silences the other. */
static __always_inline bool may_send(struct packet *packet, u32 answer)
{
	u32 share = answer != ANSWER_RESET, tick = now_ns(packet) >> TICK_SHIFT;
	struct error_budget *budget = error_budget.lookup(&share);

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

/* The farm of the packet refuses connections that it cannot serve, unless its setting is to drop them. */
static __always_inline bool refuses(u32 farm)
{
	struct farm_settings *settings = farm_settings.lookup(&farm);

	return !settings || !(settings->flags & FARM_FLAG_SILENT);
}

/* A segment that is a reset deserves none (RFC 9293 3.10.7.1); a fragment that acknowledges nothing has no known length. */
static __always_inline u32 reset_of(struct packet *packet)
{
	if (packet->tcp_flags & TCP_RST || (packet->fragment && !(packet->tcp_flags & TCP_ACK)))
		return ANSWER_NOTHING;
	return ANSWER_RESET;
}

/* The answer for a packet that was dropped with this verdict; an ICMP message and a later fragment get none. */
static __always_inline u32 choose_answer(struct packet *packet, u32 verdict)
{
	if ((packet->protocol != IPPROTO_TCP && packet->protocol != IPPROTO_UDP) || is_later_fragment(packet))
		return ANSWER_NOTHING;
	switch (verdict) {
	case COUNTER_DROP_TTL_EXPIRED:
		return ANSWER_TIME_EXCEEDED;
	case COUNTER_DROP_TOO_BIG:
		return ANSWER_TOO_BIG;
	case COUNTER_DROP_NO_ROUTE:
	case COUNTER_DROP_NO_TUNNEL_SOURCE:
		return ANSWER_NO_ROUTE;
	case COUNTER_DROP_NO_FLOW:
	case COUNTER_DROP_VIP_GUARD:
		return is_midstream(packet) ? reset_of(packet) : ANSWER_NOTHING;
	case COUNTER_DROP_NO_BACKEND:
	case COUNTER_DROP_FARM_FULL:
	case COUNTER_DROP_BACKEND_FULL:
	case COUNTER_DROP_SNAT_EXHAUSTED:
	case COUNTER_DROP_REVERSE_CONFLICT:
		if (is_midstream(packet))
			return reset_of(packet);
		if (!refuses(packet->farm))
			return ANSWER_NOTHING;
		return packet->protocol == IPPROTO_TCP ? reset_of(packet) : ANSWER_NO_PORT;
	}
	return ANSWER_NOTHING;
}

/* The ICMP error of a router, which has an address of its own; else it comes from the address that the packet was sent to. */
static __always_inline bool is_from_router(u32 answer)
{
	return answer == ANSWER_TIME_EXCEEDED || answer == ANSWER_NO_ROUTE;
}

static __always_inline u32 event_of(u32 answer)
{
	if (answer == ANSWER_RESET)
		return COUNTER_EVENT_RESET_SENT;
	return answer == ANSWER_TIME_EXCEEDED ? COUNTER_EVENT_TIME_EXCEEDED_SENT : COUNTER_EVENT_UNREACHABLE_SENT;
}

/* The frame goes back to its sender. */
static __always_inline void return_frame(struct packet *packet, struct ethhdr *original, struct ethhdr *ethernet)
{
	u8 receiver[ETH_ALEN];

	__builtin_memcpy(receiver, original->h_dest, ETH_ALEN);
	__builtin_memcpy(ethernet->h_dest, original->h_source, ETH_ALEN);
	__builtin_memcpy(ethernet->h_source, receiver, ETH_ALEN);
	ethernet->h_proto = original->h_proto;
	packet->egress_ifindex = ingress_of(packet);
	packet->answered = true;
}
