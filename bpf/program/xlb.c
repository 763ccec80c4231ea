/* xlb's XDP programs. `xlb` is on the interfaces. It forwards the packets of established connections by itself (fast.family.h)
 * and hands every other IP packet to `xlb_v4` or `xlb_v6`, so that the verifier follows each part by itself and the fast path
 * stays small. Those take all steps:
 *
 *  1. parse    tags, headers, lengths and ports                   vlan.h, parse.h, ipv4.h, ipv6.h
 *  2. find     its flow; without one, the VIP it is for           pipeline.family.h
 *  3. fence    stop here unless this node holds the lease         fence.h
 *  4. act      promote the connection, or select a backend and
 *              open one                                           flow.family.h, select.family.h
 *  5. egress   next hop, from the flow or from the FIB            egress.family.h
 *  6. rewrite  addresses, ports, checksums, MACs                  rewrite.family.h
 *              or wrap                                            tunnel.h, tunnel.family.h
 *  7. answer   tell the sender of a packet that was dropped       answer.h, answer.family.h
 *  8. finish   tag, count the verdict, return the XDP action      vlan.h, count.h
 *
 * ICMP errors (icmp.family.h) and neighbour messages (neighbour.h) take the same steps: find, fence, act.
 *
 * A step returns a verdict, which ends the packet's path, or CONTINUE (verdict.h). Files *.family.h are compiled once for
 * IPv4 and once for IPv6. bcc inlines everything into these programs; `make program.c` writes their flattened source.
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/errno.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/in6.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>
#include "maps.h"
#include "verdict.h"
#include "parse.h"
#include "checksum.h"
#include "fence.h"
#include "answer.h"
#include "ipv4.h"
#include "ipv6.h"
#include "vlan.h"
#include "tunnel.h"
#include "capture.h"
#include "capture.family.h"
#include "count.h"
#include "select.h"
#include "load.h"
#include "pressure.h"
#include "select.family.h"
#include "event.family.h"
#include "flow.h"
#include "affinity.h"
#include "affinity.family.h"
#include "suspend.family.h"
#include "admit.family.h"
#include "recent.family.h"
#include "flow.family.h"
#include "fragment.family.h"
#include "server.family.h"
#include "tunnel.family.h"
#include "egress.family.h"
#include "toa.family.h"
#include "rewrite.family.h"
#include "fence.family.h"
#include "icmp.family.h"
#include "neighbour.h"
#include "answer.family.h"
#include "open.family.h"
#include "pipeline.family.h"
#include "fast.family.h"
#include "captured.family.h"
#include "captured.h"

/* In the program that is on the interfaces. */
static __always_inline struct packet packet_of(struct xdp_md *context)
{
	return (struct packet){
		.context = context,
		.ethernet = (void *)(long)context->data,
		.network = (void *)(long)context->data + sizeof(struct ethhdr),
		.end = (void *)(long)context->data_end,
		.frame_bytes = context->data_end - context->data,
	};
}

/* In a program that was called with the packet. */
static __always_inline struct packet packet_passed_on(struct xdp_md *context)
{
	struct packet packet = packet_of(context);

	set_ingress(&packet);
	return packet;
}

/* The verdict on a packet. An IP packet that the fast path leaves is handed over: the calls return only if they fail. */
static __always_inline u32 enter(struct packet *packet)
{
	u32 verdict = receive(packet);

	if (verdict != CONTINUE)
		return verdict;
	switch (packet->ethernet->h_proto) {
	case htons(ETH_P_IP):
		verdict = forward_known_v4(packet);
		if (verdict != CONTINUE)
			return verdict;
		handlers.call(packet->context, HANDLER_V4);
		return COUNTER_DROP_INTERNAL;
	case htons(ETH_P_IPV6):
		verdict = forward_known_v6(packet);
		if (verdict != CONTINUE)
			return verdict;
		handlers.call(packet->context, HANDLER_V6);
		return COUNTER_DROP_INTERNAL;
	case htons(ETH_P_ARP):
		return handle_arp(packet);
	}
	return COUNTER_PASS_NOT_IP;
}

#ifdef CAPTURE
int xlb_enter(struct xdp_md *context) /* `xlb` reads the packet before */
#else
int xlb(struct xdp_md *context)
#endif
{
	struct packet packet = packet_of(context);

	return finish(&packet, enter(&packet));
}

int xlb_v4(struct xdp_md *context)
{
	struct packet packet = packet_passed_on(context);

	if (packet.network > packet.end)
		return finish(&packet, COUNTER_DROP_INTERNAL);
	return finish(&packet, handle_v4(&packet));
}

int xlb_v6(struct xdp_md *context)
{
	struct packet packet = packet_passed_on(context);

	if (packet.network > packet.end)
		return finish(&packet, COUNTER_DROP_INTERNAL);
	return finish(&packet, handle_v6(&packet));
}

int xlb_open_v4(struct xdp_md *context)
{
	struct packet packet = packet_passed_on(context);

	return finish(&packet, handle_open_v4(&packet));
}

int xlb_open_v6(struct xdp_md *context)
{
	struct packet packet = packet_passed_on(context);

	return finish(&packet, handle_open_v6(&packet));
}

#ifdef VLANS
/* The fast path for an IP packet with the tag of a VLAN, which stays in its place. */
static __always_inline u32 enter_tagged(struct packet *packet)
{
	__be16 protocol;
	u32 verdict;

	if (packet->network > packet->end)
		return COUNTER_DROP_INTERNAL;
	protocol = *(__be16 *)(packet->network - sizeof(protocol));
	verdict = protocol == htons(ETH_P_IP) ? forward_known_v4(packet) : forward_known_v6(packet);
	if (verdict != CONTINUE)
		return verdict;
	packet->tagged = false;
	verdict = strip_tag(packet);
	if (verdict != CONTINUE)
		return verdict;
	if (protocol == htons(ETH_P_IP))
		handlers.call(packet->context, HANDLER_V4);
	else
		handlers.call(packet->context, HANDLER_V6);
	return COUNTER_DROP_INTERNAL;
}

int xlb_tagged(struct xdp_md *context)
{
	struct packet packet = packet_passed_on(context);

	packet.network += sizeof(struct vlan_tag);
	packet.frame_bytes -= sizeof(struct vlan_tag);
	packet.tagged = true;
	return finish(&packet, enter_tagged(&packet));
}
#endif

#ifdef LOADS
/* Chooses a backend for the program that calls it, and calls that again. */
int xlb_choose(struct xdp_md *context)
{
	u32 zero = 0, handler;
	struct packet packet = packet_passed_on(context);
	struct choice *choice = choices.lookup(&zero);
	struct farm_limits *limits;

	if (!choice)
		return finish(&packet, COUNTER_DROP_INTERNAL);
	limits = farm_limits.lookup(&choice->farm);
	if (limits)
		choose_candidate(choice, limits);
	choice->made = true;
	handler = choice->handler;
	handlers.call(context, handler);
	return finish(&packet, COUNTER_DROP_INTERNAL);
}
#endif
