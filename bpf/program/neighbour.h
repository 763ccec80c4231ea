/* ARP requests and neighbour solicitations: whoever answers for a VIP draws its traffic, so only the lease's holder may. */
#pragma once
#include "fence.h"

#define ARP_REQUEST htons(1)

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

static __always_inline u32 handle_arp(struct packet *packet)
{
	struct arp_ipv4 *arp = packet->network;
	struct vip_key_v4 target = {};

	if ((void *)(arp + 1) > packet->end || arp->operation != ARP_REQUEST || arp->protocol != htons(ETH_P_IP))
		return COUNTER_PASS_NOT_IP;
	__builtin_memcpy(&target, arp->target, sizeof(target));
	if (!vips_v4.lookup(&target))
		return COUNTER_PASS_NOT_IP;
	/* Nobody answers an announcement (RFC 5227). A node that has just handed a VIP over learns from it where packets wait to go. */
	if (*(__be32 *)arp->sender == *(__be32 *)arp->target)
		return COUNTER_PASS_NEIGHBOUR;
	return is_fenced(packet) ? COUNTER_DROP_FENCED_NEIGHBOUR : COUNTER_PASS_NEIGHBOUR;
}

/* An ICMP message; GO_ON: not a solicitation for a VIP. */
static __always_inline u32 handle_solicitation_v4(struct packet *packet)
{
	return GO_ON;
}

static __always_inline u32 handle_solicitation_v6(struct packet *packet)
{
	struct neighbour_solicitation *asked = packet->transport;
	struct vip_key_v6 target = {};

	if ((void *)(asked + 1) > packet->end || asked->type != NEIGHBOUR_SOLICITATION)
		return GO_ON;
	target.address = asked->target;
	if (!vips_v6.lookup(&target))
		return GO_ON;
	return is_fenced(packet) ? COUNTER_DROP_FENCED_NEIGHBOUR : COUNTER_PASS_NEIGHBOUR;
}
