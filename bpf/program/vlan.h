/* Priority tags: IEEE 802.1Q and 802.1ad tags with VLAN 0, which say nothing but a priority. Linux removes them, one after the
 * other, and treats the rest as an untagged frame; so must the fence. A tag with another VLAN belongs to a VLAN device.
 */
#pragma once
#include "fence.h"

#define VLAN_NUMBER htons(0x0fff)

struct vlan_tag {
	__be16 control;  /* priority and VLAN */
	__be16 protocol; /* EtherType of what follows */
};

static __always_inline bool is_vlan(__be16 protocol)
{
	return protocol == htons(ETH_P_8021Q) || protocol == htons(ETH_P_8021AD);
}

static __always_inline bool is_handled(__be16 protocol)
{
	return protocol == htons(ETH_P_IP) || protocol == htons(ETH_P_IPV6) || protocol == htons(ETH_P_ARP);
}

/* Remove `bytes` of tags behind the MAC addresses. */
static __always_inline u32 remove_tags(struct packet *packet, u32 bytes)
{
	struct xdp_md *context = packet->context;
	u8 addresses[2 * ETH_ALEN];

	__builtin_memcpy(addresses, packet->ethernet, sizeof(addresses));
	if (bpf_xdp_adjust_head(context, bytes))
		return COUNTER_DROP_INTERNAL;
	packet->ethernet = (void *)(long)context->data;
	packet->network = (void *)(packet->ethernet + 1);
	packet->end = (void *)(long)context->data_end;
	if (packet->network > packet->end)
		return COUNTER_DROP_INTERNAL;
	__builtin_memcpy(packet->ethernet, addresses, sizeof(addresses));
	packet->frame_bytes -= bytes;
	return CONTINUE;
}

/* CONTINUE: the frame is untagged now, and IP or ARP. Otherwise the verdict. */
static __always_inline u32 remove_priority_tags(struct packet *packet)
{
	struct vlan_tag *tag = packet->network;
	__be16 protocol = packet->ethernet->h_proto;

#pragma unroll
	for (u32 i = 0; i < MAX_PRIORITY_TAGS; i++) {
		if (!is_vlan(protocol))
			break;
		if ((void *)(tag + 1) > packet->end || tag->control & VLAN_NUMBER)
			return COUNTER_PASS_NOT_IP;
		protocol = tag->protocol;
		tag++;
	}
	if (is_handled(protocol))
		return remove_tags(packet, (void *)tag - packet->network);
	if (is_vlan(protocol) && is_fenced(packet))
		return COUNTER_DROP_FENCED;
	return COUNTER_PASS_NOT_IP;
}
