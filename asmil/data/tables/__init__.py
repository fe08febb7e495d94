"""Label and split tables of other tools: how they are read, recognised and checked before they enter a store."""
