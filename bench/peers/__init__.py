"""What others would do, as fast as their tools allow.

The peers share no code with xpkern, so they are a check of the answers too.
"""
