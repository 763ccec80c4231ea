"""The network on Linux: rtnetlink, notifications, announcements, sysctls, offloads."""
