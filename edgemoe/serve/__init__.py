"""``edgemoe serve``: a server with OpenAI's and Anthropic's interfaces, in front of an engine in a child process.

This room speaks HTTP and translates between the interfaces; it computes nothing. Chat formats and answers are the
engine's.
"""
