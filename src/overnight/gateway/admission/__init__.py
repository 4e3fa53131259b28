"""What: admission control of model calls: reservations, queues, settlement, replay for external jobs, loop guard."""
