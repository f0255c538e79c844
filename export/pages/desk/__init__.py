"""The mixing desk: a page on which heads and projections are switched, and what that does is seen at once."""
