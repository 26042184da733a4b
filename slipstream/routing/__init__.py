"""Which target a request goes to. Decisions are pure: the same inputs give the same answer; time is an argument."""
