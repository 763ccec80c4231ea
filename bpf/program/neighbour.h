/* ARP requests and neighbour solicitations: the node that answers for a VIP attracts its traffic, so a fenced node must not.
 * Its kernel may still own the VIP, because the daemon died, and Linux answers every request for an address it owns, the
 * gratuitous request of the successor included. It answers no ARP reply and no neighbour advertisement, but learns from both.
 */
#pragma once
#include "fence.h"

#define ARP_REQUEST htons(1)
#define ARP_REPLY htons(2)

struct arp_ipv4 {
	__be16 hardware;
	__be16 protocol;
	u8 hardware_bytes;
	u8 protocol_bytes;
	__be16 operation;
	u8 sender_mac[6];
	u8 sender[4];
	u8 target_mac[6];
	u8 target[4];
};
_Static_assert(sizeof(struct arp_ipv4) == 28, "arp_ipv4");

/* Turn a gratuitous request into the gratuitous reply with the same content (RFC 5227 section 3). */
static __always_inline void make_reply(struct arp_ipv4 *arp)
{
	arp->operation = ARP_REPLY;
	__builtin_memcpy(arp->target_mac, arp->sender_mac, sizeof(arp->target_mac));
}

/* A fenced kernel needs the announcements of the active node: after a hand-over it forwards packets for the VIP to it. */
static __always_inline u32 handle_arp(struct packet *packet)
{
	struct arp_ipv4 *arp = packet->network;
	struct vip_key_v4 target = {};

	if ((void *)(arp + 1) > packet->end || arp->operation != ARP_REQUEST || arp->protocol != htons(ETH_P_IP))
		return COUNTER_PASS_NOT_IP;
	__builtin_memcpy(&target, arp->target, sizeof(target));
	if (!vips_v4.lookup(&target))
		return COUNTER_PASS_NOT_IP;
	if (!is_fenced(packet))
		return COUNTER_PASS_NEIGHBOUR;
	if (*(__be32 *)arp->sender != *(__be32 *)arp->target)
		return COUNTER_DROP_FENCED_NEIGHBOUR;
	make_reply(arp);
	return COUNTER_PASS_NEIGHBOUR;
}

/* CONTINUE: the ICMP message is not a neighbour solicitation for a VIP. */
static __always_inline u32 handle_solicitation_v4(struct packet *packet)
{
	return CONTINUE;
}

static __always_inline u32 handle_solicitation_v6(struct packet *packet)
{
	struct neighbour_solicitation *solicitation = packet->transport;
	struct vip_key_v6 target = {};

	if ((void *)(solicitation + 1) > packet->end || solicitation->type != NEIGHBOUR_SOLICITATION)
		return CONTINUE;
	target.address = solicitation->target;
	if (!vips_v6.lookup(&target))
		return CONTINUE;
	return is_fenced(packet) ? COUNTER_DROP_FENCED_NEIGHBOUR : COUNTER_PASS_NEIGHBOUR;
}
