/* Keys and values of the maps that hold an address, once per family: FAM becomes v4 and v6. */

struct addr_FAM {
	__be32 word[WORDS_FAM];
};

struct vip_key_FAM {
	struct addr_FAM address;
};

struct service_key_FAM {
	struct addr_FAM address;
	__be16 port;
	u8 protocol;
	u8 zero;
};

/* Longest-prefix-match key: a port range is stored as the prefixes that cover it. */
struct range_key_FAM {
	u32 prefix_length; /* bits after this word that are compared */
	u8 protocol;
	u8 zero[3];
	struct addr_FAM address;
	__be16 port;
	u8 zero_after[2];
};

/* A backend of a farm in mode dnat, to recognise it as a client of its own farm. */
struct member_key_FAM {
	struct addr_FAM address;
	u32 farm;
};

/* One direction of a connection, as its packets arrive. */
struct flow_key_FAM {
	struct addr_FAM source;
	struct addr_FAM destination;
	__be16 source_port;
	__be16 destination_port;
	u8 protocol;
	u8 zero[3];
};

/* How to forward that direction: the full rewrite, so that a packet needs one lookup.
 *
 * With FLOW_FLAG_DSR or FLOW_FLAG_IPIP there is no rewrite and no entry of the other direction; source and ports are the
 * client's, destination is the backend's address. FLOW_FLAG_OTHER_FAMILY: an IPv6 address takes the first 16 bytes of a v4
 * entry, an IPv4 address the first word of the destination of a v6 entry.
 */
struct flow_FAM {
	struct addr_FAM source;
	struct addr_FAM destination;
	__be16 source_port;
	__be16 destination_port;
	u16 l3_delta; /* one's complement sum to add to the IPv4 header checksum, TTL decrement included; 0 for IPv6 */
	u16 l4_delta; /* the same for the TCP or UDP checksum */
	u8 destination_mac[6];
	u8 source_mac[6];
	u32 interface;           /* egress; valid, like the MACs, while next_hop_generation matches the global one */
	u32 next_hop_generation; /* 0: never resolved */
	u32 last_seen;           /* ticks, see TICK_SHIFT */
	u16 farm;
	u8 flags; /* FLOW_FLAG_*: never changed after creation */
	u8 state; /* FLOW_STATE_* */
	u16 backend;
	u16 mtu; /* of the egress interface or route, bytes of IP packet; valid with the MACs */
};

/* A copy of an entry of `flows`; see recent.family.h. */
struct recent_FAM {
	struct flow_key_FAM key; /* in `zero` how often flows with its hash had changed */
	struct flow_FAM flow;
	u8 spare[RECENT_SPARE_FAM];
};

/* A changed connection, for the peer: its forward entry, from which the reply entry is derived. */
struct flow_event_FAM {
	struct flow_key_FAM key;
	struct flow_FAM flow;
	u8 type; /* EVENT_TYPE_* */
	u8 zero[7];
};

/* What the pipeline knows of a packet, for the program that opens its connection. */
struct suspended_FAM {
	struct flow_key_FAM key;
	u32 ip_bytes;
	u32 fragment_id;
	__be16 fragment;
	u16 transport; /* offset of the transport header in the IP packet */
	u8 protocol;
	u8 tcp_flags;
	u8 has_old; /* the fields of struct match_FAM */
	u8 ended;   /* its old entry is in `flows` */
	u8 complete;
	u8 retry;
	u8 zero[2];
};

/* A connection while it is made; never in a map that keeps it. */
struct connection_FAM {
	struct suspended_FAM suspended;
	struct service service;                           /* its listener */
	__be32 addresses[WORDS_FAM * MAX_SNAT_ADDRESSES]; /* that are searched for a source */
	struct flow_FAM forward;                          /* from here on cleared for each connection */
	struct flow_FAM reply;
	struct flow_key_FAM reply_key;
	struct flow_key_FAM other_key; /* see other_key_FAM; or of a connection that ends for it */
	struct member_key_FAM member_key;
	u32 hash;
	u32 spread; /* of the source that was found; see spread_attempt */
	u32 port;   /* of that source */
	u32 rank;   /* SOURCE_* of an attempt */
	u32 tick;
	struct port_range ports;
	u32 found; /* SOURCE_* */
	u32 snat_count;
	u8 mode;
	u8 is_new;
	u8 zero[2];
};
