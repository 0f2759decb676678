"""Small worlds with exact rewards, made and trained offline: where methods are shown and claims are tested."""
