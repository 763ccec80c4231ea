/* The programs of a capture: `xlb`, which reads the packet that has come, and xlb_captured, which writes the record.
 *
 * The packet is copied by bpf_xdp_load_bytes, so that it is read whatever its length, and no header has to be in one place.
 */
#pragma once
#include "capture.h"

#ifdef CAPTURE

/* Returns whether the bytes were read. */
static __always_inline bool load_bytes(struct xdp_md *context, u32 offset, void *to, u32 bytes)
{
	return !bpf_xdp_load_bytes(context, offset, to, bytes);
}

/* --- headers ----------------------------------------------------------------------------------------------- */

/* Returns the offset of the transport header; 0: there is none to read. */
static __always_inline u32 read_ipv4(struct xdp_md *context, struct headers *to, __be32 *addresses, u32 at)
{
	struct iphdr ip;

	if (!load_bytes(context, at, &ip, sizeof(ip)) || ip.version != 4)
		return 0;
	addresses[0] = ip.saddr;
	addresses[4] = ip.daddr;
	to->protocol = ip.protocol;
	to->later = !!(ip.frag_off & FRAGMENT_OFFSET);
	return at + ip.ihl * 4;
}

static __always_inline u32 read_ipv6(struct xdp_md *context, struct headers *to, __be32 *addresses, u32 at)
{
	struct ipv6hdr ip;
	u8 extension[8];

	if (!load_bytes(context, at, &ip, sizeof(ip)) || ip.version != 6)
		return 0;
	__builtin_memcpy(addresses, &ip.saddr, sizeof(ip.saddr));
	__builtin_memcpy(addresses + 4, &ip.daddr, sizeof(ip.daddr));
	to->protocol = ip.nexthdr;
	at += sizeof(ip);
#pragma unroll
	for (int i = 0; i < MAX_IPV6_EXTENSIONS; i++) {
		u8 kind = to->protocol;

		if (!is_extension(kind))
			break;
		if (!load_bytes(context, at, extension, sizeof(extension)))
			return 0;
		to->protocol = extension[0];
		at += kind == IPPROTO_FRAGMENT ? 8 : 8 + 8 * extension[1];
		if (kind == IPPROTO_FRAGMENT)
			to->later = extension[2] || extension[3] & 0xf8;
	}
	return at;
}

/* Of IPv4 the first word of each address. */
static __always_inline u32 read_ip(struct xdp_md *context, struct headers *to, __be32 *addresses, u32 at)
{
	return to->family == 4 ? read_ipv4(context, to, addresses, at) : read_ipv6(context, to, addresses, at);
}

static __always_inline void read_arp(struct xdp_md *context, struct headers *to, u32 at)
{
	__be32 address;

	if (load_bytes(context, at + 14, &address, sizeof(address)))
		to->source[0] = address;
	if (load_bytes(context, at + 24, &address, sizeof(address)))
		to->destination[0] = address;
}

static __always_inline void read_headers(struct xdp_md *context, struct headers *to)
{
	__be16 protocol, tag[2], ports[2];
	u32 at = sizeof(struct ethhdr);
	u8 type;

	__builtin_memset(to, 0, sizeof(*to));
	if (!load_bytes(context, 2 * ETH_ALEN, &protocol, sizeof(protocol)))
		return;
#pragma unroll
	for (int i = 0; i < MAX_PRIORITY_TAGS + 1; i++) {
		if (!is_vlan(protocol))
			break;
		if (!load_bytes(context, at, tag, sizeof(tag)))
			return;
		protocol = tag[1];
		at += sizeof(tag);
	}
	if (!is_handled(protocol))
		return;
	to->family = protocol == htons(ETH_P_IPV6) ? 6 : 4;
	if (protocol == htons(ETH_P_ARP)) {
		read_arp(context, to, at);
		return;
	}
	at = read_ip(context, to, to->source, at);
	if (!at || to->later)
		return;
	if (to->protocol == IPPROTO_TCP || to->protocol == IPPROTO_UDP) {
		if (load_bytes(context, at, ports, sizeof(ports)))
			to->destination_port = ports[1];
		return;
	}
	if (!load_bytes(context, at, &type, sizeof(type)))
		return;
	if (to->protocol == IPPROTO_ICMP ? is_icmp_error_v4(type) : to->protocol == IPPROTO_ICMPV6 && is_icmp_error_v6(type)) {
		to->quotes = to->family;
		read_ip(context, to, to->quoted_source, at + sizeof(struct icmp_header));
	}
}

/* --- the packet before ------------------------------------------------------------------------------------- */

static __always_inline struct capture_settings *settings_of_capture(void)
{
	u32 zero = 0;

	return capture_settings.lookup(&zero);
}

/* The compiler may not merge the comparison that follows with an earlier one, from which the verifier would learn less. */
#define see_bound(number) asm volatile("" : "+r"(number))

/* Copies the packet to `to`; returns how many bytes of it. */
static __always_inline u64 keep_packet(struct xdp_md *context, void *to, u64 bytes, u64 snap_bytes)
{
	if (bytes > snap_bytes)
		bytes = snap_bytes;
	bytes--; /* of an unsigned number Linux 6.1 learns an upper bound, and not that it is no 0 */
	see_bound(bytes);
	if (bytes >= CAPTURE_SNAP_BYTES)
		return 0;
	bytes++;
	return bpf_xdp_load_bytes(context, 0, to, bytes) ? 0 : bytes;
}

int xlb(struct xdp_md *context)
{
	struct observed *observed = observed_here();
	struct capture_settings *wanted = settings_of_capture();
	u32 bytes = context->data_end - context->data;
	u64 now = bpf_ktime_get_ns();

	if (observed && wanted) {
		observed->entered = now < wanted->until_ns;
		__builtin_memset(&observed->record, 0, sizeof(observed->record));
		__builtin_memset(observed->client, 0, sizeof(observed->client));
	}
	if (observed && wanted && observed->entered) {
		observed->record.entered_ns = now;
		observed->record.ingress = context->ingress_ifindex;
		observed->record.before_bytes = bytes;
		read_headers(context, &observed->headers);
		observed->record.before_kept = keep_packet(context, observed->kept, bytes, wanted->snap_bytes);
	}
	handlers.call(context, HANDLER_ENTER);
	return XDP_DROP;
}

/* --- the packet after -------------------------------------------------------------------------------------- */

static __always_inline bool is_client(struct capture_settings *wanted, u32 family, __be32 *address)
{
	u32 difference = 0;

#pragma unroll
	for (int i = 0; i < 4; i++)
		difference |= (address[i] & wanted->client_mask[i]) ^ wanted->client[i];
	return wanted->client_family == family && !difference;
}

static __always_inline bool is_about_client(struct capture_settings *wanted, struct headers *headers)
{
	return is_client(wanted, headers->family, headers->source) ||
	       is_client(wanted, headers->family, headers->destination) ||
	       is_client(wanted, headers->quotes, headers->quoted_source) ||
	       is_client(wanted, headers->quotes, headers->quoted_destination);
}

/* A packet from a client, to it, or about one of its packets; before or after. */
static __always_inline bool is_of_client(struct xdp_md *context, struct capture_settings *wanted, struct observed *observed)
{
	if (is_about_client(wanted, &observed->headers))
		return true;
	if (observed->client[0] | observed->client[1] | observed->client[2] | observed->client[3] &&
	    is_client(wanted, observed->headers.family, observed->client))
		return true;
	if (observed->record.action == XDP_DROP)
		return false;
	read_headers(context, &observed->headers);
	return is_about_client(wanted, &observed->headers);
}

static __always_inline bool is_wanted(struct xdp_md *context, struct capture_settings *wanted, struct observed *observed)
{
	if (wanted->verdicts && !(wanted->verdicts & observed->record.counted))
		return false;
	if (wanted->farm && wanted->farm != observed->record.farm)
		return false;
	if (wanted->by_backend && !capture_backends.lookup(&observed->record.backend))
		return false;
	return !wanted->client_family || is_of_client(context, wanted, observed);
}

static __always_inline void record_packet(struct xdp_md *context, struct observed *observed)
{
	u32 zero = 0, bytes = context->data_end - context->data;
	u64 kept;
	struct capture_settings *wanted = settings_of_capture();
	struct capture_loss *loss = capture_losses.lookup(&zero);

	if (!wanted || !loss || !observed->entered)
		return;
	observed->entered = 0;
	loss->seen++;
	observed->record.left_ns = bpf_ktime_get_ns();
	observed->record.after_bytes = bytes;
	if (observed->record.action != XDP_REDIRECT)
		observed->record.egress = observed->record.action == XDP_TX ? observed->record.ingress : 0;
	observed->record.cpu = bpf_get_smp_processor_id();
	if (!observed->record.farm && observed->headers.family == 4)
		observe_service_v4(observed);
	else if (!observed->record.farm && observed->headers.family == 6)
		observe_service_v6(observed);
	if (!is_wanted(context, wanted, observed))
		return;
	loss->matched++;
	kept = observed->record.before_kept;
	see_bound(kept);
	if (kept > CAPTURE_SNAP_BYTES)
		return;
	if (observed->record.action != XDP_DROP)
		observed->record.after_kept = keep_packet(context, observed->kept + kept, bytes, wanted->snap_bytes);
	kept += observed->record.after_kept;
	see_bound(kept);
	if (kept > 2 * CAPTURE_SNAP_BYTES)
		return;
	if (capture_ring.ringbuf_output(observed, sizeof(observed->record) + kept, 0))
		loss->lost++;
}

int xlb_captured(struct xdp_md *context)
{
	struct observed *observed = observed_here();

	if (!observed)
		return XDP_DROP;
	record_packet(context, observed);
	return observed->record.action;
}
#endif
