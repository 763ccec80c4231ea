/* Predicates on a flow's flags and state. */
#pragma once
#include "parse.h"

#define PLACE_FACTOR 0x9e3779b97f4a7c15ULL /* 2**64 / phi: see GOLDEN_RATIO */
#define SYN_RETRY_TICKS 8 /* 0.5 s: later than a duplicate of a SYN, earlier than its first retransmission (1 s, RFC 6298) */

static __always_inline bool is_closed(u8 state)
{
	const u8 both = FLOW_STATE_FIN_HERE | FLOW_STATE_FIN_THERE;

	return state & FLOW_STATE_RST || (state & both) == both;
}

/* May no new connection use this backend: is it down or removed? */
static __always_inline bool is_unavailable(u32 backend_id)
{
	struct backend *backend = backends.lookup(&backend_id);

	return !backend || backend->flags & BACKEND_FLAG_UNAVAILABLE;
}

static __always_inline u32 age_of(struct packet *packet, u32 last_seen)
{
	return (u32)(now_ns(packet) >> TICK_SHIFT) - last_seen;
}

/* Is a one-way connection established by this packet? Its client has sent a packet before, and sends another one because it got
 * an answer: after a SYN a segment, after a datagram one of a later tick. */
static __always_inline bool continues_one_way(struct packet *packet, u8 state, u32 last_seen)
{
	if (!(state & FLOW_STATE_SEEN) || state & FLOW_STATE_RST)
		return false;
	if (packet->protocol == IPPROTO_TCP)
		return !(packet->tcp_flags & (TCP_SYN | TCP_RST));
	return age_of(packet, last_seen);
}

/* What was found for a connection that needs a source towards its backend; more is better. */
enum source {
	SOURCE_NONE,
	SOURCE_SPARE,  /* of a connection that is closed, or that is not established: it ends if no other is free */
	SOURCE_RESTED, /* both ends have closed its connection long ago */
	SOURCE_FREE,
};

/* May the port of an established connection be given to another one? A RST is only a hint, so its connection ends in need
 * alone. Without branches, as below: the verifier would follow each of them for every attempt. */
static __always_inline u32 rank_of_established(u8 state, u32 idle_ticks)
{
	u32 here = !!(state & FLOW_STATE_FIN_HERE), there = !!(state & FLOW_STATE_FIN_THERE);
	u32 finished = here & there, rested = (idle_ticks - PORT_REST_TICKS) >> 31 ^ 1;

	return SOURCE_SPARE * (finished | !!(state & FLOW_STATE_RST)) + (SOURCE_RESTED - SOURCE_SPARE) * (finished & rested);
}

static __always_inline u32 rank_of_embryonic(u32 idle_ticks)
{
	return SOURCE_SPARE * ((idle_ticks - EMBRYONIC_REST_TICKS) >> 31 ^ 1);
}

/* Payload bytes of a TCP segment, 0 for UDP. */
static __always_inline u32 segment_bytes(struct packet *packet)
{
	struct tcphdr *tcp = packet->transport;

	if (packet->protocol != IPPROTO_TCP || (void *)(tcp + 1) > packet->end)
		return 0;
	return packet->ip_bytes - (packet->transport - packet->network) - tcp->doff * 4;
}

/* The state of a flow after one of its packets. A FIN or RST is a hint: a sender that continues has not sent it, or its
 * receiver has ignored it (RFC 5961). So any later segment but another client's SYN revokes a RST, payload after a FIN
 * revokes that FIN, and the answer to a SYN starts it again. Not if this end has sent before and not ended: then the answer is an
 * old duplicate.
 */
static __always_inline u8 next_state(struct packet *packet, u8 before)
{
	const u8 ends = FLOW_STATE_RST | FLOW_STATE_FIN_HERE | FLOW_STATE_FIN_THERE;
	const u8 revocable = FLOW_STATE_RST | FLOW_STATE_FIN_HERE;
	u8 state = before | FLOW_STATE_SEEN;

	if (packet->tcp_flags & TCP_RST)
		return state | FLOW_STATE_RST;
	if (packet->tcp_flags & TCP_SYN)
		return packet->tcp_flags & TCP_ACK && (before & (FLOW_STATE_SEEN | revocable)) != FLOW_STATE_SEEN
			       ? state & ~ends
			       : state;
	state &= ~FLOW_STATE_RST;
	if (packet->tcp_flags & TCP_FIN)
		return state | FLOW_STATE_FIN_HERE;
	return state & FLOW_STATE_FIN_HERE && segment_bytes(packet) ? state & ~FLOW_STATE_FIN_HERE : state;
}

/* The same bits as the entry of the other direction has them; it keeps its other bits. */
static __always_inline u8 mirrored_state(u8 state, u8 other)
{
	const u8 ends = FLOW_STATE_RST | FLOW_STATE_FIN_HERE | FLOW_STATE_FIN_THERE;

	return (other & ~ends) | (state & FLOW_STATE_RST) | (state & FLOW_STATE_FIN_HERE ? FLOW_STATE_FIN_THERE : 0) |
	       (state & FLOW_STATE_FIN_THERE ? FLOW_STATE_FIN_HERE : 0);
}
