/* Answers a packet that is too long for its way out, from the address it was sent to. Never about an ICMP error, and not more
 * often than may_send_error allows: a sender that is not told tries again.
 */

static __always_inline u32 answer_too_big_FAM(struct packet *packet, u32 mtu)
{
	const u32 kept = sizeof(struct ethhdr) + QUOTE_BYTES_FAM;
	struct xdp_md *context = packet->context;
	struct ethhdr *ethernet, *was;
	void *end;

	if (!may_send_error(packet))
		return COUNTER_DROP_TOO_BIG;
	if (bpf_xdp_adjust_tail(context, (int)kept - (int)packet->frame_bytes) ||
	    bpf_xdp_adjust_head(context, -(int)ERROR_HEADER_BYTES_FAM))
		return COUNTER_DROP_TOO_BIG;
	ethernet = (void *)(long)context->data;
	end = (void *)(long)context->data_end;
	was = (void *)ethernet + ERROR_HEADER_BYTES_FAM;
	if ((void *)was + kept > end)
		return COUNTER_DROP_TOO_BIG;
	__builtin_memcpy(ethernet->h_dest, was->h_source, ETH_ALEN);
	__builtin_memcpy(ethernet->h_source, was->h_dest, ETH_ALEN);
	ethernet->h_proto = was->h_proto;
	write_too_big_FAM((void *)(ethernet + 1), mtu);
	packet->interface = context->ingress_ifindex;
	return COUNTER_FORWARD_TOO_BIG;
}
