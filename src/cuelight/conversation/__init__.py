"""Prompts made in a conversation with their designer: the state, who writes, who answers, and the agent between them."""
