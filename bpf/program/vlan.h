/* VLAN tags (IEEE 802.1Q and 802.1ad). A tag with VLAN 0 carries a priority alone: Linux removes such tags, one after the
 * other, and treats the rest as an untagged frame; so must the fence. A tag with another VLAN belongs to a VLAN device.
 *
 * With VLANS the program is on the interface below VLAN devices, and handles the frames of those that it knows as if they had
 * come in by the VLAN device: FIB and flows have its index. What is sent through a VLAN device gets its tag, with priority 0 as
 * Linux sends by default, and leaves through the interface below. What goes to the kernel has the tags that it came with.
 * xlb_tagged forwards known flows with the tag in its place; for all other programs it is removed.
 */
#pragma once
#include "fence.h"
#include "ipv6.h"

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

#ifdef VLANS

#define MAX_TAGS (MAX_PRIORITY_TAGS + 1) /* that are removed from a frame */
#define MAC_WORDS (2 * ETH_ALEN / 4)

/* The VLAN devices with a number above an interface, by the protocol of the tag; 0: none. */
struct vlan {
	u32 q;  /* 802.1Q */
	u32 ad; /* 802.1ad */
};

/* What the program must know of an interface, by its index. */
struct interface_tag {
	u32 lower;  /* of a VLAN device: the interface that its frames leave by; 0: it is none */
	__be32 tag; /* its protocol and number */
	u32 block; /* of an interface below VLAN devices: the place of their numbers in `vlans`, counted from 1; 0: it is none */
	u32 flags; /* INTERFACE_FLAG_* */
};

/* How a frame came, for the programs that are called with it. */
struct arrival {
	u32 interface; /* of a tagged frame the VLAN device */
	u32 tags;      /* that were removed */
	__be32 tag[MAX_TAGS];
};

/* Arrays, because each packet looks things up: a hash would cost as much as the rest. */
BPF_TABLE_PINNED("array", u32, struct vlan, vlans, MAX_VLAN_BLOCKS *VLAN_NUMBERS, PINS "/vlans");
BPF_TABLE_PINNED("array", u32, struct interface_tag, interface_tags, MAX_INTERFACES, PINS "/interface_tags");
BPF_TABLE_PINNED("percpu_array", u32, struct arrival, arrivals, 1, PINS "/arrivals");

/* In a program that was called with the packet: the interface that it came in by. */
static __always_inline void set_ingress(struct packet *packet)
{
	u32 zero = 0;
	struct arrival *arrival = arrivals.lookup(&zero);

	packet->ingress = arrival ? arrival->interface : packet->context->ingress_ifindex;
}

static __always_inline bool is_tagged_only(struct interface_tag *known)
{
	return known && known->flags & INTERFACE_FLAG_TAGGED_ONLY;
}

/* The index of the VLAN device above an interface; 0: the VLAN is not balanced. */
static __always_inline u32 find_device(struct interface_tag *known, __be16 number, __be16 protocol)
{
	u32 index;
	struct vlan *vlan;

	if (!known || !known->block)
		return 0;
	index = (known->block - 1) * VLAN_NUMBERS + ntohs(number);
	vlan = vlans.lookup(&index);
	if (!vlan)
		return 0;
	return protocol == htons(ETH_P_8021Q) ? vlan->q : vlan->ad;
}

/* Move the MAC addresses `bytes` forward, the frame's begin with them. Returns what is behind them; NULL: there is no space. */
static __always_inline __be32 *move_addresses(struct packet *packet, int bytes)
{
	struct xdp_md *context = packet->context;
	__be32 addresses[MAC_WORDS], *word = (void *)(long)context->data;

	if ((void *)(word + MAC_WORDS) > (void *)(long)context->data_end)
		return NULL;
	__builtin_memcpy(addresses, word, sizeof(addresses));
	if (bpf_xdp_adjust_head(context, bytes))
		return NULL;
	word = (void *)(long)context->data;
	if ((void *)(word + MAC_WORDS) > (void *)(long)context->data_end)
		return NULL;
	__builtin_memcpy(word, addresses, sizeof(addresses));
	return word + MAC_WORDS;
}

/* Remove the tags of a frame, and remember them. CONTINUE, or a drop. */
static __always_inline u32 strip_tags(struct packet *packet, struct arrival *arrival, u32 bytes)
{
	struct xdp_md *context = packet->context;
	__be32 *word = (void *)(long)context->data + 2 * ETH_ALEN;

#pragma unroll
	for (u32 i = 0; i < MAX_TAGS; i++) {
		if (i == bytes / sizeof(*word))
			break;
		if ((void *)(word + 1) > (void *)(long)context->data_end)
			return COUNTER_DROP_INTERNAL;
		arrival->tag[i] = *word++;
	}
	arrival->tags = bytes / sizeof(*word);
	if (!move_addresses(packet, bytes))
		return COUNTER_DROP_INTERNAL;
	packet->ethernet = (void *)(long)context->data;
	packet->network = (void *)(packet->ethernet + 1);
	packet->end = (void *)(long)context->data_end;
	return packet->network > packet->end ? COUNTER_DROP_INTERNAL : CONTINUE;
}

/* CONTINUE: the frame belongs to an interface that is balanced, and is IP or ARP; its tags are removed. Otherwise the verdict.
 * An IP packet with the tag of a VLAN alone is handed over to the program that leaves the tag in its place: it returns only if
 * that fails. */
static __always_inline u32 receive_tagged(struct packet *packet, struct arrival *arrival)
{
	struct interface_tag *known = interface_tags.lookup(&packet->ingress);
	struct vlan_tag *tag = packet->network;
	__be16 protocol = packet->ethernet->h_proto, number, found = 0, kind = 0;
	u32 bytes;

#pragma unroll
	for (u32 i = 0; i < MAX_TAGS; i++) {
		if (!is_vlan(protocol))
			break;
		if ((void *)(tag + 1) > packet->end)
			return COUNTER_PASS_NOT_IP;
		number = tag->control & VLAN_NUMBER;
		if (number && found)
			return COUNTER_PASS_NOT_IP; /* a VLAN in a VLAN */
		if (number) {
			found = number;
			kind = protocol;
		}
		protocol = tag->protocol;
		tag++;
	}
	if (found) {
		packet->ingress = find_device(known, found, kind);
		if (!packet->ingress)
			return COUNTER_PASS_NOT_IP;
		arrival->interface = packet->ingress;
	} else if (is_tagged_only(known)) {
		return COUNTER_PASS_NOT_IP;
	}
	if (is_handled(protocol)) {
		bytes = (void *)tag - packet->network;
		if (found && bytes == sizeof(*tag) && protocol != htons(ETH_P_ARP))
			handlers.call(packet->context, HANDLER_TAGGED);
		packet->frame_bytes -= bytes;
		return strip_tags(packet, arrival, bytes);
	}
	if (is_vlan(protocol) && is_fenced(packet))
		return COUNTER_DROP_FENCED;
	return COUNTER_PASS_NOT_IP;
}

/* The same for every frame. */
static __always_inline u32 receive(struct packet *packet)
{
	u32 zero = 0;
	struct arrival *arrival = arrivals.lookup(&zero);

	if (!arrival)
		return COUNTER_DROP_INTERNAL;
	packet->ingress = arrival->interface = packet->context->ingress_ifindex;
	arrival->tags = 0;
	if (packet->network > packet->end)
		return COUNTER_PASS_NOT_IP;
	if (is_vlan(packet->ethernet->h_proto))
		return receive_tagged(packet, arrival);
	return is_tagged_only(interface_tags.lookup(&packet->ingress)) ? COUNTER_PASS_NOT_IP : CONTINUE;
}

/* Before a packet with a tag is handed over to a program that expects none. CONTINUE, or a drop. */
static __always_inline u32 strip_tag(struct packet *packet)
{
	u32 zero = 0;
	struct arrival *arrival = arrivals.lookup(&zero);

	return arrival ? strip_tags(packet, arrival, sizeof(struct vlan_tag)) : COUNTER_DROP_INTERNAL;
}

/* Give a frame back the tags that it came with. False: there is no space for them, which it had. */
static __always_inline bool restore_tags(struct packet *packet)
{
	u32 zero = 0, count;
	struct arrival *arrival = arrivals.lookup(&zero);
	__be32 *word;

	if (!arrival)
		return false;
	count = *(volatile u32 *)&arrival->tags; /* one read, for the verifier */
	if (!count)
		return true;
	if (count > MAX_TAGS)
		return false;
	word = move_addresses(packet, -(int)(count * sizeof(*word)));
	if (!word)
		return false;
#pragma unroll
	for (u32 i = 0; i < MAX_TAGS; i++) {
		if (i == count)
			break;
		if ((void *)(word + 1) > (void *)(long)packet->context->data_end)
			return false;
		*word++ = arrival->tag[i];
	}
	return true;
}

/* A frame leaves by a VLAN device with its tag, by another interface without one. `before`: it has a tag. False: there is no
 * space. */
static __always_inline bool tag_frame(struct packet *packet, bool before)
{
	struct interface_tag *known = interface_tags.lookup(&packet->egress_ifindex);
	__be32 *word;

	if (!known || !known->lower)
		return !before || move_addresses(packet, sizeof(*word));
	packet->egress_ifindex = known->lower;
	if (before)
		word = (void *)(long)packet->context->data + 2 * ETH_ALEN;
	else
		word = move_addresses(packet, -(int)sizeof(*word));
	if (!word || (void *)(word + 1) > (void *)(long)packet->context->data_end)
		return false;
	*word = known->tag;
	return true;
}

/* The last step before a frame goes to the kernel or leaves. Returns the verdict to count. `tagged`: the tag that it came with
 * is in its place. */
static __always_inline u32 retag(struct packet *packet, u32 verdict, bool tagged)
{
	verdict += opaque_zero(packet->frame_bytes); /* else the verifier would follow this once for each verdict */
	if (is_pass(verdict))
		return restore_tags(packet) ? verdict : COUNTER_DROP_INTERNAL;
	if (is_drop(verdict) && !packet->answered)
		return verdict;
	if (tag_frame(packet, tagged))
		return verdict;
	packet->answered = false;
	return is_drop(verdict) ? verdict : COUNTER_DROP_NO_HEADROOM;
}

#else

static __always_inline void set_ingress(struct packet *packet)
{
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

/* CONTINUE: the frame has no tag any more. Otherwise the verdict. */
static __always_inline u32 receive(struct packet *packet)
{
	if (packet->network > packet->end)
		return COUNTER_PASS_NOT_IP;
	return is_vlan(packet->ethernet->h_proto) ? remove_priority_tags(packet) : CONTINUE;
}

static __always_inline u32 retag(struct packet *packet, u32 verdict, bool tagged)
{
	return verdict;
}

#endif
